"""The OpenAPI document, completed: what every door may answer besides what its own code says.

The framework knows the answers that a function declares. What access control, limits and a missing engine answer,
and in which form, is the same for all doors of a kind, and is added here. Knows no door by name; used by `_app`.
"""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI

from qwen3_asr_server.frontends._answer import EVENT_STREAM
from qwen3_asr_server.frontends._errors import is_openai

TITLES: Final = {
    "400": "The request cannot be met as it is; the message says what is wrong with it.",
    "401": "The API key is missing or wrong.",
    "403": "Pages of this origin may not do that.",
    "404": "There is no such thing, or no such model.",
    "408": "The request stopped before its end.",
    "413": "It is over a limit.",
    "500": "The server failed; its log has the details.",
    "503": "Full, shutting down, or without a working model; `Retry-After` says when to come back, if that may help.",
}
_ALWAYS: Final = ("401", "500")
_WITH_PARAMETERS: Final = ("400", "404")
_WITH_CHANGES: Final = ("403", "503")
_WITH_BODY: Final = ("400", "404", "408", "413")

PLAIN_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["code", "message", "request_id"],
    "properties": {name: {"type": "string"} for name in ("code", "message", "request_id")},
}
OPENAI_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(app: FastAPI) -> None:
    """Have the application describe itself completely."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = original()
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):  # ours has another form and another status
                schemas.pop(name, None)
            schemas |= {"Error": PLAIN_ERROR, "OpenAIError": OPENAI_ERROR}
            for path, operations in described["paths"].items():
                for method, operation in operations.items():
                    _complete(operation, path, method)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def texts(*media_types: str) -> dict[str, Any]:
    """Return the contents of an answer that is a text of one of some types, for `responses=`."""
    return {media_type: {"schema": {"type": "string"}} for media_type in media_types}


def event_stream(*names: str) -> dict[str, Any]:
    """Return the content of an answer that is told as server-sent events, each with JSON as its data.

    Args:
        names: the kinds of events, where they are named.
    """
    event: dict[str, Any] = {
        "type": "object",
        "required": ["data", *(["event"] if names else [])],
        "properties": {
            "data": {"type": "string", "contentMediaType": "application/json"},
            **({"event": {"type": "string", "enum": list(names)}} if names else {}),
        },
    }
    return {EVENT_STREAM: {"schema": event}}


def _complete(operation: dict[str, Any], path: str, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    schema = {"$ref": f"#/components/schemas/{'OpenAIError' if is_openai(path) else 'Error'}"}
    for status in _statuses(operation, method):
        responses.setdefault(
            status, {"description": TITLES[status], "content": {"application/json": {"schema": schema}}}
        )


def _statuses(operation: dict[str, Any], method: str) -> Iterator[str]:
    yield from _ALWAYS
    if operation.get("parameters"):
        yield from _WITH_PARAMETERS
    if method != "get":
        yield from _WITH_CHANGES
    if operation.get("requestBody"):
        yield from _WITH_BODY
