"""Every error there is, in every form of an HTTP answer."""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response

from qwen3_asr_server.errors import AsrServerError, InvalidValue
from qwen3_asr_server.frontends._errors import error_at, error_response, openai_error
from qwen3_asr_server.frontends._vendor import Frames, vendor_error
from qwen3_asr_server.frontends.dashscope_async import NotToBeCanceled
from qwen3_asr_server.runtime._job_failures import NobodySpeaks, NoWords
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.jobs import JobsFull


def subclasses(of: type[AsrServerError]) -> Iterator[type[AsrServerError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from subclasses(kind)


KINDS = [
    *(kind for kind in subclasses(AsrServerError) if kind.__module__ == AsrServerError.__module__),
    *(Refused, JobsFull, NobodySpeaks, NoWords, NotToBeCanceled),
]


def made(kind: type[AsrServerError]) -> AsrServerError:
    """Return an error, with what its class asks for beside a message."""
    asked = inspect.signature(kind).parameters.values()
    required = {it.name: "sessions" for it in asked if it.kind is it.KEYWORD_ONLY and it.default is it.empty}
    return kind("Not like this.", **required)


def data_of(frame: Response) -> dict[str, Any]:
    (line,) = [line for line in bytes(frame.body).decode().splitlines() if line.startswith("data:")]
    return json.loads(line.removeprefix("data:"))


def body_of(answer: JSONResponse) -> dict[str, Any]:
    return json.loads(bytes(answer.body))


FORMS: dict[str, Callable[[AsrServerError], tuple[int, dict[str, Any]]]] = {
    "ours": lambda error: ((answer := error_response(error)).status_code, body_of(answer)),
    "by path": lambda error: ((answer := error_at("/api/transcribe", error)).status_code, body_of(answer)),
    "vendor": lambda error: ((answer := vendor_error(error)).status_code, body_of(answer)),
    "vendor, events": lambda error: ((answer := Frames("id").error(error)).status_code, data_of(answer)),
    "OpenAI": lambda error: ((answer := openai_error(error)).status_code, body_of(answer)["error"]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_in_every_form(kind: type[AsrServerError], form: str) -> None:
    error = made(kind)
    status, body = FORMS[form](error)
    assert 400 <= status < 600
    assert body["message"] == "Not like this."

    error.param = "parameters.top"
    status_of_it, body = FORMS[form](error)
    assert status_of_it == status
    if form == "OpenAI":
        assert (body["param"], body["message"]) == ("parameters.top", "Not like this.")
    else:
        assert body["message"] == "parameters.top: Not like this."
    assert error.message == "Not like this."  # said in one form, it can still be said in another


@pytest.mark.parametrize("form", [form for form in FORMS if form != "OpenAI"])
def test_a_field_that_the_message_names_is_not_named_twice(form: str) -> None:
    _, body = FORMS[form](InvalidValue("There is no `language` 'x'.", param="language"))
    assert body["message"] == "There is no `language` 'x'."
