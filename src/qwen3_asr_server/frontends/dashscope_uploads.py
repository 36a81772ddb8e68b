"""Local files as DashScope's SDKs send them ahead of a request: `/api/v1/uploads`.

    GET ?action=getPolicy ──▶ where to, and signed leave       with the key
    POST form with a file ──▶ 200                              with the leave, and without the key
    then, in a request:       oss://<upload_dir>/<name>        `runtime/sources.py` finds it

The vendor sends the second to a storage service; here it is the same address. Only maps fields: `_upload_policy` knows
who may store what, `runtime/uploads.py` stores.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qwen3_asr_server.errors import IdleTimeout, InvalidValue
from qwen3_asr_server.frontends._answer import Answer, Exchange
from qwen3_asr_server.frontends._form import multipart
from qwen3_asr_server.frontends._multipart import FILE
from qwen3_asr_server.frontends._state import AppState, State
from qwen3_asr_server.frontends._upload_policy import POLICY_TTL_S, Policy
from qwen3_asr_server.frontends._vendor import new_request_id, own_url, vendor_answer, vendor_error
from qwen3_asr_server.runtime.uploads import is_name

router = APIRouter(tags=["dashscope"])

PATH: Final = "/api/v1/uploads"
GET_POLICY: Final = "getPolicy"

_MIB: Final = 1024 * 1024
_REQUEST: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["policy", "Signature", "key", "file"],
                "properties": {
                    "policy": {"type": "string", "description": "As getPolicy gave it; all fields before the file."},
                    "Signature": {"type": "string", "description": "The same."},
                    "key": {"type": "string", "description": "`<upload_dir>/<name>`."},
                    "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                },
            }
        }
    },
}


@router.get(PATH, responses={503: {"description": "As many uploads are kept as may be."}})
async def give_leave(request: Request, state: State, action: str = GET_POLICY, model: str = "") -> Response:
    """Say where a file may be sent to, with a signature that lets it in for some minutes."""
    if action != GET_POLICY:
        raise InvalidValue(f"The action is {GET_POLICY}.", param="action")
    state.stored.demand_room()
    policy, text, signature = state.upload_policies.issue(state.source_limits.max_bytes)
    output = {
        "policy": text,
        "signature": signature,
        "upload_dir": policy.folder,
        "upload_host": own_url(request, PATH),
        "expire_in_seconds": POLICY_TTL_S,
        "max_file_size_mb": policy.max_bytes // _MIB,
        "oss_access_key_id": "qwen3-asr-server",
        "x_oss_object_acl": "private",
        "x_oss_forbid_overwrite": "true",
    }
    # SDKs read `output`; the vendor documents `data` for clients without an SDK.
    return vendor_answer({"output": output, "data": output}, new_request_id())


@router.post(PATH, openapi_extra={"requestBody": _REQUEST})
async def upload(state: State) -> Response:
    """Keep a file for the requests to come. Needs the leave of getPolicy, and no key."""
    return Answer(lambda exchange: _store(exchange, state), vendor_error, send_timeout_s=state.limits["send_timeout_s"])


async def _store(exchange: Exchange, state: AppState) -> Response:
    stall_s = state.source_limits.upload_stall_s
    form = multipart(exchange, state.source_limits.max_bytes)
    async with aclosing(form.file_in(exchange.body())) as pieces:
        try:
            async with asyncio.timeout(stall_s):
                first = await anext(pieces, None)
        except TimeoutError:
            raise IdleTimeout("The upload stopped before its end.") from None
        # The rest is not read, and nothing stored, before it is clear that the client may.
        policy, key = _leave(form.fields, state)
        if not form.has_file:
            raise InvalidValue("There is no file.", param=FILE)
        with state.uploads.admit():
            await state.stored.store(key, _all(first, pieces), policy.max_bytes, stall_s)
    return vendor_answer({}, new_request_id())


def _leave(fields: dict[str, list[str]], state: AppState) -> tuple[Policy, str]:
    """Return what a client may store, and what it is to be called."""
    shown = {name: (fields.get(name) or [""])[-1] for name in ("policy", "Signature", "key")}
    policy = state.upload_policies.check(shown["policy"], shown["Signature"])
    folder, _, name = shown["key"].partition("/")
    if folder != policy.folder or not is_name(name):
        raise InvalidValue("The key is the upload_dir of the policy, a slash and a file's name.", param="key")
    return policy, shown["key"]


async def _all(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for piece in rest:
            yield piece
