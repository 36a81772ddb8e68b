"""DashScope realtime client messages, decoded and not yet judged.

`parse` keeps no state, so a large message may be parsed on a worker thread. It knows base64 and which messages may
be large; it does not know sessions, nor which event types exist apart from `append`, the one that comes ten times a
second. Called by `DashscopeRealtime.parse`.
"""

import binascii
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.errors import ClientError, InvalidAudio, InvalidEvent, TooLarge
from qwen3_asr_server.protocols._fields import JsonObject
from qwen3_asr_server.protocols._json import LARGE_CHARS, check_depth, json_object

APPEND: Final = "input_audio_buffer.append"
MAX_EVENT_ID_CHARS: Final = 256
"""A longer `event_id` is not echoed."""
MAX_LARGE_TOKENS: Final = 1024
"""A message of `LARGE_CHARS` or more can only be an append: one long string and a few fields. JSON with
many small values takes up to thirty times its length in memory, so it is refused before it is decoded."""


@dataclass(frozen=True, slots=True)
class Append:
    """`input_audio_buffer.append`, its audio out of base64."""

    audio: bytes
    event_id: str | None


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """Any other JSON object with a `type`."""

    type: str
    body: JsonObject
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that is no event."""

    error: ClientError
    event_id: str | None = None


Parsed = Append | ClientEvent | Malformed


def parse(message: str | bytes) -> Parsed:
    """Decode one message. Never raises."""
    if isinstance(message, bytes):
        return Malformed(InvalidEvent("Binary messages are not supported. Send events as JSON text."))
    if len(message) >= LARGE_CHARS and sum(map(message.count, ",[{")) > MAX_LARGE_TOKENS:
        return Malformed(TooLarge(f"An event other than {APPEND} must be shorter than {LARGE_CHARS} characters."))
    try:
        body = json_object(message)
    except ClientError as error:
        return Malformed(error)
    event_id = _event_id(body)
    kind = body.get("type")
    if kind == APPEND:
        return _append(body.get("audio"), event_id)
    if not isinstance(kind, str):
        return Malformed(InvalidEvent("The event has no 'type', or one that is not a string.", param="type"), event_id)
    try:
        check_depth(body)
    except ClientError as error:
        return Malformed(error, event_id)
    return ClientEvent(kind, body, event_id)


def _append(audio: object, event_id: str | None) -> Append | Malformed:
    if not isinstance(audio, str):
        return Malformed(InvalidAudio("'audio' must be a string of base64.", param="audio"), event_id)
    try:
        return Append(_base64_bytes(audio), event_id)
    except ValueError:
        return Malformed(InvalidAudio("'audio' is not valid base64.", param="audio"), event_id)


def _base64_bytes(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        # MIME encoders break lines; any other stray character is an error.
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)


def _event_id(body: JsonObject) -> str | None:
    event_id = body.get("event_id")
    return event_id if isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID_CHARS else None
