"""How an error looks over HTTP: a status and a JSON body in the form of its door, never a trace.

Most doors say `{"code", "message", "request_id"}`, with the vendor's codes where it has one, as its SDKs read them;
those of OpenAI's interface say `{"error": {…}}`, as OpenAI's clients read it. The one mapping from our errors (and the
framework's) to HTTP. Knows nothing of what failed; used by `_app`, `_auth` and the doors.
"""

import logging
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwen3_asr_server.errors import (
    AsrServerError,
    ClientError,
    EngineError,
    Forbidden,
    IdleTimeout,
    InternalError,
    MediaError,
    Overloaded,
    SourceRefused,
    SourceUnreachable,
    TooLarge,
    Unauthorized,
    UnknownModel,
    located,
)

logger = logging.getLogger(__name__)

_OPENAI: Final = ("/v1/", "/compatible-mode/v1/")
"""What the paths of OpenAI's doors begin with, and those of the vendor's in their form."""

REQUEST_ID: Final = "x-request-id"
"""Header of every answer by which its client may be asked for it."""

Codes = Mapping[type[AsrServerError], tuple[int, str]]
"""HTTP status and code for classes of errors; a class that is not listed has those of its nearest listed base."""

_NO_CODES: Final[Codes] = MappingProxyType({})
_STATUS_AND_CODE: Final[dict[type[AsrServerError], tuple[int, str]]] = {
    Unauthorized: (401, "InvalidApiKey"),
    Forbidden: (403, "AccessDenied"),
    UnknownModel: (404, "Model.NotExist"),
    TooLarge: (413, "PayloadTooLarge"),
    MediaError: (400, "InvalidFile"),
    SourceRefused: (400, "SourceRefused"),
    SourceUnreachable: (400, "SourceUnreachable"),
    ClientError: (400, "InvalidParameter"),
    Overloaded: (503, "Throttling"),
    IdleTimeout: (408, "RequestTimeOut"),
    EngineError: (503, "ModelUnavailable"),
    InternalError: (500, "InternalError"),
}

_OPENAI_CODES: Final[dict[str, str]] = {
    "InvalidApiKey": "invalid_api_key",
    "Model.NotExist": "model_not_found",
    "InvalidFile": "invalid_file",
    "PayloadTooLarge": "file_too_large",
    "InvalidParameter": "invalid_value",
    "Throttling": "server_overloaded",
    "ModelUnavailable": "server_overloaded",
}
"""OpenAI's words for some of the codes; it has none for the others."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is to be said, free of the form."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def error_response(error: AsrServerError, codes: Codes = _NO_CODES, request_id: str = "") -> JSONResponse:
    """Return the HTTP answer that stands for `error`.

    Args:
        error: what went wrong.
        codes: status and code of classes for which the door has others than the usual ones.
        request_id: by which the answer names the request; a new one if it is empty.
    """
    failure = _failure(error, codes)
    return _ours(replace(failure, request_id=request_id) if request_id else failure)


def openai_error(error: AsrServerError) -> JSONResponse:
    """Return the answer that stands for `error` in OpenAI's form."""
    return _openai(_failure(error))


def error_at(path: str, error: AsrServerError) -> JSONResponse:
    """Return the answer that stands for `error` in the form of the door at a path."""
    return _answer(path, _failure(error))


def is_openai(path: str) -> bool:
    """Return whether the door at a path speaks OpenAI's form."""
    return path.startswith(_OPENAI)


def not_found(message: str) -> JSONResponse:
    """Return the answer for an address where nothing is."""
    return _ours(_Failure(404, "NotFound", message))


def install(app: FastAPI) -> None:
    """Make every failure inside `app` answer in these forms."""

    @app.exception_handler(AsrServerError)
    async def ours(request: Request, error: AsrServerError) -> JSONResponse:
        return error_at(request.url.path, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        code = "".join(word.capitalize() for word in status.phrase.split())
        message = f"{status.phrase}: {request.method} {request.url.path}"
        return _answer(request.url.path, _Failure(status, code, message, headers=dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _answer(request.url.path, _Failure(400, "InvalidParameter", f"{place}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        failure = _Failure(500, "InternalError", "The server failed; its log has the details.")
        logger.error("request failed", extra={"request_id": failure.request_id, "path": request.url.path})
        return _answer(request.url.path, failure)


def _failure(error: AsrServerError, codes: Codes = _NO_CODES) -> _Failure:
    table = {**_STATUS_AND_CODE, **codes}
    status, code = next(table[kind] for kind in type(error).__mro__ if kind in table)
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return _Failure(status, code, _sendable(error.message), error.param and _sendable(error.param), headers)


def _sendable(text: str) -> str:
    """Return a text as UTF-8 can say it: JSON carries halves of surrogate pairs, and messages quote clients."""
    return text.encode(errors="replace").decode()


def _answer(path: str, failure: _Failure) -> JSONResponse:
    return _openai(failure) if is_openai(path) else _ours(failure)


def _ours(failure: _Failure) -> JSONResponse:
    message = located(failure.message, failure.param)
    body = {"code": failure.code, "message": message, "request_id": failure.request_id}
    return JSONResponse(body, status_code=failure.status, headers=_headers(failure))


def _openai(failure: _Failure) -> JSONResponse:
    error: dict[str, Any] = {
        "message": failure.message,
        "type": "invalid_request_error" if failure.status < 500 else "server_error",
        "param": failure.param,
        "code": _OPENAI_CODES.get(failure.code),
    }
    return JSONResponse({"error": error}, status_code=failure.status, headers=_headers(failure))


def _headers(failure: _Failure) -> dict[str, str]:
    return {**failure.headers, REQUEST_ID: failure.request_id}
