"""Messages of run-task clients, decoded and not yet judged: audio, and instructions about a task.

    {"header": {"action": "run-task", "task_id": "…", "streaming": "duplex"}, "payload": {…}}

`parse` keeps no state. It knows neither which actions there are nor what is in their payloads. Called by
`DashscopeInference.parse`.
"""

from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.errors import ClientError, InvalidEvent, TooLarge
from qwen3_asr_server.protocols._fields import Fields
from qwen3_asr_server.protocols._json import LARGE_CHARS, check_depth, json_object

MAX_TASK_ID_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class Instruction:
    """A text message: what is to be done with which task."""

    action: str
    task_id: str
    payload: Fields


@dataclass(frozen=True, slots=True)
class Malformed:
    """A text message that is none."""

    error: ClientError
    task_id: str | None = None
    """Which task it is about, if that much could be read."""


Parsed = bytes | Instruction | Malformed
"""Bytes are audio."""


def parse(message: str | bytes) -> Parsed:
    """Decode one message. Never raises."""
    if isinstance(message, bytes):
        return message
    if len(message) >= LARGE_CHARS:
        return Malformed(TooLarge(f"A text message must be shorter than {LARGE_CHARS} characters."))
    task_id = None
    try:
        body = Fields(json_object(message), "")
        check_depth(body.values)
        header = object_in(body, "header")
        task_id = _task_id(header)
        action = header.text("action")
        if not action:
            raise InvalidEvent("There is no action.", param="header.action")
        return Instruction(action, task_id, object_in(body, "payload"))
    except ClientError as error:
        return Malformed(error, task_id)


def object_in(fields: Fields, name: str) -> Fields:
    """Return an object within another; a missing one and an empty array, which PHP sends for it, are empty."""
    value = fields.values.get(name)
    return Fields.of({} if value is None or value == [] else value, fields.place(name))


def _task_id(header: Fields) -> str:
    task_id = header.text("task_id")
    if not task_id or len(task_id) > MAX_TASK_ID_CHARS:
        error = f"A task is named by a string of at most {MAX_TASK_ID_CHARS} characters."
        raise InvalidEvent(error, param="header.task_id")
    return task_id
