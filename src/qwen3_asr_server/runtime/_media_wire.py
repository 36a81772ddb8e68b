"""The messages between the server and the process that decodes a file for it.

A message is a header (what it is, length of the body) and a body. Both ends import this; it knows neither processes nor
media.
"""

import json
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final

HEADER: Final = struct.Struct("<BI")
"""The kind of a message and the length of its body in bytes."""

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""A longer body means that the stream is out of step: a second of audio has 64 kB a channel."""

_LONGEST_NAME: Final = 64


class Fault(IntEnum):
    """Why a file is not read any further."""

    UNKNOWN_FORMAT = 0
    NO_AUDIO = 1
    UNKNOWN_CODEC = 2
    DAMAGED = 3
    RATE = 4
    CHANNELS = 5
    TOO_LONG = 6
    MEMORY = 7


@dataclass(frozen=True, slots=True)
class Task:
    """What the server asks for, as JSON on the command line."""

    split_channels: bool
    max_channels: int
    """Most channels to keep apart."""
    max_audio_s: float
    memory_bytes: int
    """Address space on top of what the libraries take."""
    cpu_s: float
    """Processor time, in seconds, besides the audio's length divided by `speed`."""
    speed: float


@dataclass(frozen=True, slots=True)
class MediaKind:
    """What the audio of a file was before it was decoded."""

    container: str = ""
    """FFmpeg's names for the format of the file, comma-separated."""
    codec: str = ""
    """FFmpeg's name."""
    rate: int = 0
    """In samples a second."""
    channels: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """What a file turned out to be."""

    channels: int
    duration_s: float | None
    kind: MediaKind = MediaKind()


@dataclass(frozen=True, slots=True)
class Ended:
    """There is no more audio."""

    cut_short: bool
    """The file ends before it should."""


Message = Opened | Ended | Fault | bytes
"""What the process says: `Opened`, then audio as float32 [channels, n] in native byte order, then `Ended`; or at
any time a `Fault`, after which nothing follows."""


class _Told(IntEnum):
    OPENED = 0
    AUDIO = 1
    ENDED = 2
    FAILED = 3


def packed(message: Message) -> bytes:
    """Return a message as bytes, its header included."""
    match message:
        case Opened():
            told, body = _Told.OPENED, json.dumps(asdict(message)).encode()
        case Ended():
            told, body = _Told.ENDED, bytes([message.cut_short])
        case Fault():
            told, body = _Told.FAILED, bytes([message])
        case bytes():
            told, body = _Told.AUDIO, message
    return HEADER.pack(told, len(body)) + body


def parsed(kind: int, body: bytes) -> Message:
    """Return the message that a header and a body stand for. The sender is not trusted.

    Raises:
        ValueError: they stand for none.
    """
    match _Told(kind), body:
        case _Told.OPENED, _:
            return _opened(body)
        case _Told.AUDIO, _:
            return body
        case _Told.ENDED, bytes() if len(body) == 1:
            return Ended(bool(body[0]))
        case _Told.FAILED, bytes() if len(body) == 1:
            return Fault(body[0])
    raise ValueError("a body of the wrong length")


def _opened(body: bytes) -> Opened:
    match json.loads(body):
        case {"channels": int(channels), "duration_s": float() | None as duration_s, "kind": kind} if channels > 0:
            return Opened(channels, duration_s, _kind(kind))
    raise ValueError("no opening")


def _kind(told: object) -> MediaKind:
    match told:
        case {"container": str(container), "codec": str(codec), "rate": int(rate), "channels": int(channels)}:
            return MediaKind(container[:_LONGEST_NAME], codec[:_LONGEST_NAME], rate, channels)
    raise ValueError("no kind of media")
