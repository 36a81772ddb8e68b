"""How an error looks over HTTP: `{"code", "message", "request_id"}` and a status, never a trace.

The one mapping from our errors (and the framework's) to HTTP. The codes are the vendor's where it has one,
as its SDKs read them. Knows nothing of what failed; used by `_app` and `_auth`.
"""

import logging
import math
import uuid
from http import HTTPStatus
from typing import Final

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
    Overloaded,
    TooLarge,
    Unauthorized,
    UnknownModel,
)

logger = logging.getLogger(__name__)

_STATUS_AND_CODE: Final[dict[type[AsrServerError], tuple[int, str]]] = {
    Unauthorized: (401, "InvalidApiKey"),
    Forbidden: (403, "AccessDenied"),
    UnknownModel: (404, "Model.NotExist"),
    TooLarge: (413, "PayloadTooLarge"),
    ClientError: (400, "InvalidParameter"),
    Overloaded: (503, "Throttling"),
    IdleTimeout: (408, "RequestTimeOut"),
    EngineError: (503, "ModelUnavailable"),
    InternalError: (500, "InternalError"),
}


def error_response(error: AsrServerError) -> JSONResponse:
    """Return the HTTP answer that stands for `error`."""
    status, code = next(_STATUS_AND_CODE[kind] for kind in type(error).__mro__ if kind in _STATUS_AND_CODE)
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return _json(status, code, error.message, headers)


def not_found(message: str) -> JSONResponse:
    """Return the answer for an address where nothing is."""
    return _json(404, "NotFound", message)


def install(app: FastAPI) -> None:
    """Make every failure inside `app` answer in this form."""

    @app.exception_handler(AsrServerError)
    async def ours(request: Request, error: AsrServerError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        code = "".join(word.capitalize() for word in status.phrase.split())
        return _json(status, code, f"{status.phrase}: {request.method} {request.url.path}", dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _json(400, "InvalidParameter", f"{place}: {first['msg']}")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        response_id = _new_id()
        logger.error("request failed", extra={"request_id": response_id, "path": request.url.path})
        return _json(500, "InternalError", "The server failed; its log has the details.", request_id=response_id)


def _json(
    status: int, code: str, message: str, headers: dict[str, str] | None = None, request_id: str | None = None
) -> JSONResponse:
    body = {"code": code, "message": message, "request_id": request_id or _new_id()}
    return JSONResponse(body, status_code=status, headers=headers)


def _new_id() -> str:
    return str(uuid.uuid4())
