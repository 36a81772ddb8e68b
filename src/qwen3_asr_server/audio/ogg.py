"""Take an Ogg stream apart into the packets it carries (RFC 3533), as its bytes arrive.

Pages may be cut into packets of the transport anywhere, and packets of the codec may span pages. Checksums
are not verified: the stream comes over TCP. One logical stream is followed at a time; a new one begins
where a page says so, pages of any other are passed over.

It does not know what is in the packets. Called by `ogg_audio`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.errors import InvalidAudio

CAPTURE: Final = b"OggS"
"""The first bytes of every page."""

_HEADER: Final = struct.Struct("<4sBBqIIIB")
_CONTINUED: Final = 1
_FIRST: Final = 2
_LAST: Final = 4
_FULL_SEGMENT: Final = 255  # a shorter one ends its packet
_MAX_KEPT_BYTES: Final = 128 * 1024  # twice the largest opus packet; only comments with pictures are longer


@dataclass(frozen=True, slots=True)
class OggPage:
    """What one page completes."""

    packets: tuple[bytes, ...]
    """Packets that end on this page; those over 128 KiB are cut short."""
    granule: int
    """Position of the stream after these packets, in the codec's unit; -1 where no packet ends."""
    first: bool
    """The page begins a logical stream."""
    last: bool
    """The page ends it."""


class OggReader:
    """An incremental demuxer.

    Attributes:
        broken: what should be a page is none, or the stream's first page is missing. There is no way on.
    """

    def __init__(self) -> None:
        self.broken = False
        self._buffer = bytearray()
        self._serial: int | None = None
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[OggPage]:
        """Take in the next bytes and yield the pages that are complete now, one at a time to save memory.

        Exhaust the iterator before the next call: pages that were not taken come again.

        Raises:
            InvalidAudio: the stream is `broken`, now or since earlier.
        """
        self._buffer += data
        at = 0
        try:
            while size := self._page_bytes(at):
                page = self._read_page(bytes(self._buffer[at : at + size]))
                at += size
                if page is not None:
                    yield page
        except InvalidAudio:
            self.broken = True
            raise
        finally:
            del self._buffer[:at]

    def _page_bytes(self, at: int) -> int:
        """Return the size of the page that begins at `at`, 0 while it is not complete."""
        head = bytes(self._buffer[at : at + _HEADER.size])
        if not CAPTURE.startswith(head[:4]) or head[4:5] not in (b"", b"\0"):
            raise InvalidAudio("the Ogg stream is damaged")
        if len(head) < _HEADER.size:
            return 0
        body_at = at + _HEADER.size + head[-1]
        size = body_at - at + sum(self._buffer[at + _HEADER.size : body_at])
        return size if len(self._buffer) - at >= size else 0

    def _read_page(self, page: bytes) -> OggPage | None:
        _, _, flags, granule, serial, _, _, segments = _HEADER.unpack_from(page)
        first, last = bool(flags & _FIRST), bool(flags & _LAST)
        if first:
            self._serial = serial
        elif self._serial is None:
            raise InvalidAudio("the Ogg stream does not begin at its beginning")
        elif serial != self._serial:
            return None
        if not flags & _CONTINUED:
            self._partial.clear()
        packets, at = list[bytes](), _HEADER.size + segments
        for length in page[_HEADER.size : at]:
            if len(self._partial) < _MAX_KEPT_BYTES:
                self._partial += page[at : at + length]
            at += length
            if length < _FULL_SEGMENT:
                packets.append(bytes(self._partial))
                self._partial.clear()
        return OggPage(tuple(packets), granule, first, last)
