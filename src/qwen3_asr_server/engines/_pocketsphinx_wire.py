"""The messages between the embedded engine and its decoder processes.

A message is a header (number, code, length of the body; little-endian) and a body. A request's body is audio,
an answer's body is JSON. An answer repeats the request's number, so nobody takes the answer to a question that
was given up for the answer to the next one. Both ends import this; it knows neither processes nor decoders.
"""

import json
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from typing import Final

HEADER: Final = struct.Struct("<IBI")
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""More than half an hour of audio: a longer body means that the stream is out of step."""

READY: Final = 0
"""Number of the message that a decoder process sends once, when its model is loaded."""


class Ask(IntFlag):
    """What a request wants besides its audio (s16le, 16 kHz) being heard."""

    NOTHING = 0
    RESTART = 1
    """Begin a new utterance before hearing the audio; one that is open is dropped."""
    FINISH = 2
    """End the utterance after hearing the audio: the answer is final."""


class Told(IntEnum):
    """What an answer is."""

    HEARD = 0
    """The body is a `Report`."""
    FAILED = 1
    """The decoder refused; the body is the name of the error."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a decoder believes after a request."""

    text: str
    words: list[tuple[str, int, int, float | None]]
    """Word, first frame, last frame (10 ms each, last one inclusive), posterior in [0, 1] if the utterance ended."""

    def to_body(self) -> bytes:
        """Return the body of an answer."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_body(cls, body: bytes) -> "Report":
        """Read the body of an answer."""
        fields = json.loads(body)
        return cls(fields["text"], [tuple(word) for word in fields["words"]])


def message(number: int, code: int, body: bytes = b"") -> bytes:
    """Return one message as bytes.

    Args:
        number: of the request, from 1 to 2**32 - 1; an answer repeats it.
        code: `Ask` or `Told`.
        body: at most `MAX_BODY_BYTES`.
    """
    return HEADER.pack(number, code, len(body)) + body
