"""How the server's errors look on the wires of DashScope's two WebSockets: one table.

Codes are the names that the SDK turns into exceptions where one fits (`Throttling`, `Model.NotExist`), else
words in the style of the vendor's documentation (`invalid_value`). Used by `dashscope_realtime` and
`dashscope_inference`.
"""

from typing import Final, NamedTuple

from qwen3_asr_server import errors
from qwen3_asr_server.errors import AsrServerError


class WireError(NamedTuple):
    """How a class of errors looks on the wire."""

    code: str
    close_code: int
    """WebSocket close code, should the error end the connection."""
    type: str = "invalid_request_error"
    """Anything but this makes the v2 SDK close and LiveKit try again."""
    failed_code: str | None = None
    """Code where one utterance failed; None for the same as `code`."""
    task_code: str | None = None
    """Code where a task of the run-task protocol failed; None for the same as `code`."""


WIRE_ERRORS: Final = {
    errors.InvalidEvent: WireError("invalid_event", 1008, task_code="InvalidParameter"),
    errors.InvalidValue: WireError("invalid_value", 1008, task_code="InvalidParameter"),
    errors.InvalidAudio: WireError("invalid_audio", 1008, task_code="InvalidParameter"),
    errors.EmptyCommit: WireError("input_audio_buffer_commit_empty", 1008),
    errors.UnknownModel: WireError("Model.NotExist", 1008),
    errors.Unauthorized: WireError("InvalidApiKey", 1008),
    errors.Forbidden: WireError("AccessDenied", 1008),
    errors.TooLarge: WireError("InvalidParameter", 1009),
    errors.ClientError: WireError("InvalidParameter", 1008),
    errors.IdleTimeout: WireError("idle_timeout", 1008, task_code="CLIENT_ERROR"),
    errors.Overloaded: WireError("Throttling", 1013, "server_error"),
    errors.ShuttingDown: WireError("ServiceUnavailable", 1001, "server_error"),
    errors.EngineNotReady: WireError("ServiceUnavailable", 1013, "server_error"),
    errors.EngineTimeout: WireError("InternalError", 1011, "server_error"),
    errors.EngineCrashed: WireError("InternalError", 1011, "server_error"),
    errors.EngineError: WireError("InternalError", 1011, "server_error", failed_code="audio_unintelligible"),
    errors.AsrServerError: WireError("InternalError", 1011, "server_error"),
}
"""An error that is not listed looks like its nearest listed base."""

EMPTY_COMMIT: Final = "Error committing input audio buffer, maybe no invalid audio stream."
"""The vendor's own words, which clients compare."""


def wire_error(error: AsrServerError) -> WireError:
    """Return how an error looks on the wire."""
    return next(WIRE_ERRORS[base] for base in type(error).__mro__ if base in WIRE_ERRORS)


def wire_message(error: AsrServerError) -> str:
    """Return the text for `error.message`."""
    return EMPTY_COMMIT if isinstance(error, errors.EmptyCommit) else error.message
