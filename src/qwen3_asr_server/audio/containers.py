"""Tell from a stream's first bytes which container it is.

Only what cannot be sound is recognised: four exact bytes at the very start at least, so that samples are
mistaken for a header less than once in four thousand million streams. It reads nothing beyond that.

Called by the decoder; the readers themselves are in `wav`, `ogg_audio` and `compressed`.
"""

from enum import Enum
from typing import Final


class Container(Enum):
    """What a stream may begin with; the value says it to a client."""

    WAV = "a WAV file"
    OGG = "an Ogg stream"
    FLAC = "a FLAC file"
    MP3 = "an MP3 file"
    WEBM = "a WebM or Matroska file"
    MP4 = "an MP4 file"
    AMR = "an AMR file"
    NONE = "no container"


_MAGICS: Final = (
    (Container.WAV, ((0, b"RIFF"), (8, b"WAVE"))),
    (Container.OGG, ((0, b"OggS"),)),
    (Container.FLAC, ((0, b"fLaC"),)),
    (Container.MP3, ((0, b"ID3"), (4, b"\0"))),
    (Container.WEBM, ((0, b"\x1aE\xdf\xa3"),)),
    (Container.MP4, ((0, b"\0\0"), (4, b"ftyp"))),
    (Container.AMR, ((0, b"#!AMR"),)),
)
"""Bytes and their places. A bare MP3 frame begins with two telling bytes only: loud samples look the same."""

_OGG_FLAGS_AT: Final = 5
_OGG_FIRST: Final = 2


def container_of(head: bytes) -> Container | None:
    """Return what a stream is from its first bytes; None while more are needed (12 at most)."""
    undecided = False
    for container, parts in _MAGICS:
        seen = [(head[at : at + len(magic)], magic) for at, magic in parts]
        if all(magic.startswith(found) for found, magic in seen):
            if all(magic == found for found, magic in seen):
                return container
            undecided = True
    return None if undecided else Container.NONE


def begins_ogg(page: bytes) -> bool | None:
    """Tell whether a page of Ogg is the first of its stream; None while more bytes are needed (6)."""
    return bool(page[_OGG_FLAGS_AT] & _OGG_FIRST) if len(page) > _OGG_FLAGS_AT else None
