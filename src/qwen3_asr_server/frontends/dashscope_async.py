"""Files to be transcribed without waiting, as DashScope's SDKs send and ask for them: tasks and their results.

    POST /api/v1/services/audio/asr/transcription   submit
    GET  /api/v1/tasks, /api/v1/tasks/{id}          list, poll
    POST /api/v1/tasks/{id}/cancel
    GET  /api/v1/results/{name}.json                what was heard, for everybody who knows the name

Only maps fields: `_filetrans_fields` reads them, `runtime/jobs.py` does the work, `_filetrans` tells of it.
"""

import asyncio
import uuid
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from qwen3_asr_server.errors import AsrServerError, ClientError, Forbidden, InvalidValue, Overloaded
from qwen3_asr_server.frontends._answer import Answer, Exchange
from qwen3_asr_server.frontends._auth import RESULTS
from qwen3_asr_server.frontends._bodies import json_object, whole_body
from qwen3_asr_server.frontends._errors import Codes, not_found
from qwen3_asr_server.frontends._filetrans import result_file, task_line, task_of
from qwen3_asr_server.frontends._filetrans_fields import SCHEMA, request_of
from qwen3_asr_server.frontends._recordings import truncation_header
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends._vendor import CODES, new_request_id, own_url, vendor_answer, vendor_error
from qwen3_asr_server.runtime.job_values import JobsQuery, JobState, NewJob
from qwen3_asr_server.runtime.jobs import JobsFull

router = APIRouter(tags=["dashscope"])

MAX_BODY_BYTES: Final = 1024 * 1024
_UNAVAILABLE: Final[dict[int | str, dict[str, Any]]] = {503: {"description": "Jobs cannot be told now."}}
_TIME_FORMAT: Final = "%Y%m%d%H%M%S"


class NotToBeCanceled(ClientError):
    """There is no such task, or it is over."""


_CODES: Final[Codes] = {
    **CODES,
    JobsFull: (429, "Throttling.AllocationQuota"),
    Overloaded: (503, "ServiceUnavailable"),
    NotToBeCanceled: (400, "UnsupportedOperation"),
}
"""Where these doors have other words than the vendor's others."""


@router.post(
    "/api/v1/services/audio/asr/transcription",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}},
    responses={429: {"description": "As many files wait as may."}},
)
async def submit(request: Request, state: State) -> Response:
    """Have files transcribed; send `X-DashScope-Async: enable`. The answer names the task."""
    return Answer(
        lambda exchange: _submit(exchange, request, state), _error, send_timeout_s=state.limits["send_timeout_s"]
    )


@router.get("/api/v1/tasks/{task_id}", responses=_UNAVAILABLE)
async def poll(task_id: str, request: Request, state: State) -> Response:
    """Say how a task stands, and where its results are."""
    request_id = new_request_id()
    try:
        status = await state.jobs.find(task_id, _owner(request))
    except Overloaded as error:
        return vendor_error(error, request_id, _CODES)
    if status is None:
        return vendor_answer({"output": {"task_id": task_id, "task_status": "UNKNOWN"}}, request_id)
    return vendor_answer(task_of(status, lambda name: own_url(request, f"{RESULTS}{name}.json")), request_id)


@router.post("/api/v1/tasks/{task_id}/cancel")
async def cancel(task_id: str, request: Request, state: State) -> Response:
    """Cancel a task that is waiting or running."""
    request_id = new_request_id()
    try:
        if not await state.jobs.cancel(task_id, _owner(request)):
            raise NotToBeCanceled("There is no such task, or it is over.")
    except (Overloaded, NotToBeCanceled) as error:
        return vendor_error(error, request_id, _CODES)
    return vendor_answer({}, request_id)


@router.get("/api/v1/tasks", responses=_UNAVAILABLE)
async def tasks(
    request: Request,
    state: State,
    page_no: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 10,
    status: str = "",
    model_name: str = "",
    start_time: str = "",
    end_time: str = "",
) -> Response:
    """List tasks, the latest first."""
    request_id = new_request_id()
    try:
        query = JobsQuery(
            owner=_owner(request),
            state=_state_named(status),
            model=model_name or None,
            since=_seconds(start_time, "start_time"),
            until=_seconds(end_time, "end_time"),
            page=page_no,
            page_size=page_size,
        )
        total, found = await state.jobs.listed(query)
    except (Overloaded, InvalidValue) as error:
        return vendor_error(error, request_id, _CODES)
    listed = [{**task_line(job), "model_name": job.model} for job in found]
    pages = -(-total // page_size)
    body = {"total": total, "total_page": pages, "page_no": page_no, "page_size": page_size, "tasks": listed}
    return vendor_answer(body, request_id)


@router.get(f"{RESULTS}{{name}}.json", responses=_UNAVAILABLE)
async def result(name: str, state: State) -> Response:
    """Return what was heard in a file."""
    try:
        found = await state.jobs.result(name)
    except Overloaded as error:
        return vendor_error(error, codes=_CODES)
    if found is None:
        return not_found("There is no such result, or not any more.")
    body = await asyncio.to_thread(lambda: JSONResponse(result_file(found, state.emotion)))
    body.headers.update({"Cache-Control": "private, no-store", **truncation_header(found.transcript)})
    return body


async def _submit(exchange: Exchange, request: Request, state: AppState) -> Response:
    if request.headers.get("x-dashscope-async", "").strip().lower() != "enable":
        raise Forbidden("This call is asynchronous only: send X-DashScope-Async: enable.")
    body = await whole_body(exchange, MAX_BODY_BYTES, state.source_limits.upload_stall_s)
    wanted = request_of(await asyncio.to_thread(json_object, body), state.services)
    task_id = str(uuid.uuid4())
    new = NewJob(task_id, _owner(request), wanted.form, wanted.model, wanted.wish, wanted.urls)
    await state.jobs.submit(new)
    output = {"task_id": task_id, "task_status": JobState.PENDING.value}
    return vendor_answer({"output": output}, new_request_id())


def _error(error: AsrServerError) -> Response:
    return vendor_error(error, codes=_CODES)


def _owner(request: Request) -> str | None:
    """Return the name of the client's key; None where the server asks for none."""
    key_id: str | None = request.state.key_id
    return key_id


def _state_named(name: str) -> JobState | None:
    try:
        return JobState(name.upper()) if name else None
    except ValueError:
        raise InvalidValue(f"status is one of: {', '.join(JobState)}.", param="status") from None


def _seconds(text: str, param: str) -> float | None:
    """Return a time of a filter, on the clock of the place, in seconds since 1970."""
    try:
        return datetime.strptime(text, _TIME_FORMAT).astimezone().timestamp() if text else None
    except (ValueError, OverflowError, OSError):
        raise InvalidValue(f"{param} is a time like 20261121093000.", param=param) from None
