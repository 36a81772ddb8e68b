"""What the doors below `/api/v1/` share with DashScope: its errors, request ids, models' names and server-sent events.

    {"code": "InvalidURL", "message": "…", "request_id": "…"}        and the same id in the header `x-request-id`

Codes are the vendor's where it has one for the case. Knows no audio; used by the doors `dashscope_*`.
"""

import json
import re
import uuid
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from qwen3_asr_server.errors import AsrServerError, MediaError, SourceRefused, SourceUnreachable, TooLarge, TooLong
from qwen3_asr_server.frontends._answer import EVENT_STREAM
from qwen3_asr_server.frontends._errors import REQUEST_ID, Codes, error_response
from qwen3_asr_server.frontends._recordings import VENDOR_MODEL, model_named
from qwen3_asr_server.runtime.services import Services

CODES: Final[Codes] = {
    MediaError: (400, "InvalidParameter.DataInspection"),
    SourceRefused: (400, "InvalidURL"),
    SourceUnreachable: (400, "InvalidParameter.DataInspection"),
    TooLarge: (413, "BadRequest.TooLarge"),
    TooLong: (400, "InvalidParameter"),
}
"""Where the vendor has another word than this server's own doors."""


def new_request_id() -> str:
    """Return a name for a request."""
    return str(uuid.uuid4())


def vendor_error(error: AsrServerError, request_id: str = "", codes: Codes = CODES) -> JSONResponse:
    """Return the answer that stands for `error`.

    Args:
        error: what went wrong.
        request_id: of the request that it ends; a new one if it is empty.
        codes: status and code of classes for which the door has others than the usual ones.
    """
    return error_response(error, codes, request_id)


def vendor_answer(body: dict[str, Any], request_id: str) -> JSONResponse:
    """Return an answer with the id of its request."""
    return JSONResponse({"request_id": request_id, **body}, headers={REQUEST_ID: request_id})


def vendor_model(services: Services, asked: str, names: re.Pattern[str] = VENDOR_MODEL) -> str:
    """Return the model that a client asks for, by its name in `Services.models`.

    Args:
        services: whose model it is.
        asked: what the client calls it; nothing asks for the default.
        names: what also stands for the default.

    Raises:
        UnknownModel: there is none of that name.
    """
    return model_named(services, "" if names.fullmatch(asked) else asked)


def wants_events(request: Request) -> bool:
    """Say whether a client wants its answer as server-sent events."""
    asked = request.headers.get("x-dashscope-sse", "").strip().lower()
    return asked == "enable" or EVENT_STREAM in request.headers.get("accept", "").lower()


def own_url(request: Request, path: str) -> str:
    """Return the address of a path here, as the client of a request reaches it: also through a proxy."""
    return f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}{path}"


class Frames:
    """The server-sent events of one answer, as the vendor writes them.

    Args:
        request_id: stands in each.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._number = 0

    def result(self, body: dict[str, Any]) -> str:
        """Return the next event."""
        return self._frame("result", 200, {**body, "request_id": self.request_id})

    def error(self, error: AsrServerError, codes: Codes = CODES) -> Response:
        """Return the answer that stands for `error`; its body is the last event, should others have been sent."""
        answer = vendor_error(error, self.request_id, codes)
        frame = self._frame("error", answer.status_code, json.loads(bytes(answer.body)))
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
        return Response(frame, answer.status_code, kept, media_type=EVENT_STREAM)

    def _frame(self, name: str, status: int, data: dict[str, Any]) -> str:
        self._number += 1
        lines = [f"id:{self._number}", f"event:{name}", f":HTTP_STATUS/{status}"]
        if name == "error":
            lines.append(f"status:{status}")  # the SDK reads it here, and for errors only
        return "\n".join([*lines, f"data:{json.dumps(data, ensure_ascii=False)}", "", ""])
