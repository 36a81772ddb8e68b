"""Find the frames of MP3, AAC (ADTS) and AMR in a byte stream that is cut anywhere.

A frame's header gives its size. The first frame, and the first one behind bytes that are none, is believed when
another header of the same kind stands behind it. Tags (ID3v2, APE) are passed over by the size that they state, also
when they come in many messages. What is kept is less than two frames (16 KiB), whatever the bytes are. FFmpeg's own
parsers keep everything until they find a header, and give a frame one header later.

It decodes nothing. Called by `compressed`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from qwen3_asr_server.errors import InvalidAudio

MAX_JUNK_BYTES: Final = 64 * 1024
"""Bytes that are no frame, in excess of those of frames behind them, before the stream is given up: as much as 4 s of
MP3 at 128 kbit/s. To search them takes up to 1 µs a byte."""


class Framer(Protocol):
    """A reader of frames."""

    @property
    def broken(self) -> bool:
        """There is no way on; it may be fed no more."""
        ...

    @property
    def codec(self) -> str:
        """FFmpeg's name of the decoder for the frames that come now."""
        ...

    def feed(self, data: bytes, *, end: bool = False) -> Iterator[bytes]:
        """Take in the next bytes and yield the frames that are complete now.

        Exhaust the iterator before the next call.

        Args:
            data: the next bytes.
            end: nothing follows for now: a complete frame is believed without another one behind it.

        Raises:
            InvalidAudio: the stream is `broken`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Syntax:
    """A kind of frame that can be found in the middle of a stream."""

    name: str
    codec: str
    may_begin: re.Pattern[bytes]
    """Matches where a header or a tag may stand, also if only its first byte has come."""
    header_bytes: int
    frame_bytes: Callable[[bytes], int]
    """Size of the frame with this header; 0 where it is none."""
    same: int
    """The bits of a header's first four bytes that stay the same in a stream."""
    index_marks: tuple[tuple[int, bytes], ...] = ()
    """Places and bytes, each of which tells that a frame is silence with an index of the file in it."""


class SyncFramer:
    """Find frames that begin with a sync word.

    Args:
        syntax: of the frames.
    """

    def __init__(self, syntax: Syntax) -> None:
        self.broken = False
        self.codec: Final[str] = syntax.codec
        self._syntax = syntax
        self._buffer = bytearray()
        self._synced = False
        self._tag_bytes = 0
        self._junk_bytes = 0

    def feed(self, data: bytes, *, end: bool = False) -> Iterator[bytes]:
        """See `Framer`. An index, which many MP3 files begin with, is passed over."""
        self._buffer += data
        at = 0
        try:
            while at < len(self._buffer) and not self.broken:
                if self._tag_bytes:
                    taken = min(self._tag_bytes, len(self._buffer) - at)
                    self._tag_bytes -= taken
                    at += taken
                    continue
                tag = _tag_bytes(bytes(self._buffer[at : at + _TAG_HEADER_BYTES]))
                size = self._frame_bytes(at, end) if tag == 0 else 0
                if tag is None or size is None:
                    break
                if tag:
                    self._tag_bytes = tag
                    self._note_junk(min(tag, _TAG_HEADER_BYTES))
                elif size:
                    frame = bytes(self._buffer[at : at + size])
                    at += size
                    self._synced, self._junk_bytes = True, max(0, self._junk_bytes - size)
                    if not any(frame.startswith(mark, place) for place, mark in self._syntax.index_marks):
                        yield frame
                else:
                    at = self._pass_over_junk(at)
        finally:
            del self._buffer[:at]
        if self.broken:
            self._buffer.clear()
            raise InvalidAudio(f"{MAX_JUNK_BYTES // 1024} KiB that are not {self._syntax.name}")

    def _frame_bytes(self, at: int, end: bool) -> int | None:
        """Return the size of the frame at `at`; 0 where none is, None while that is not known or it is not complete."""
        syntax = self._syntax
        head = bytes(self._buffer[at : at + syntax.header_bytes])
        if head[0] != _SYNC:
            return 0
        if len(head) < syntax.header_bytes:
            return None
        size = syntax.frame_bytes(head)
        if size == 0:
            return 0
        if len(self._buffer) < at + size:
            return None
        if self._synced:
            return size
        following = bytes(self._buffer[at + size : at + size + syntax.header_bytes])
        if len(following) < syntax.header_bytes:
            return size if end else None
        return size if syntax.frame_bytes(following) and self._key(head) == self._key(following) else 0

    def _key(self, head: bytes) -> int:
        return int.from_bytes(head[:4], "big") & self._syntax.same

    def _pass_over_junk(self, at: int) -> int:
        """Return the next place where a frame or a tag may begin."""
        self._synced = False
        found = self._syntax.may_begin.search(self._buffer, at + 1)
        to = found.start() if found else len(self._buffer)
        self._note_junk(to - at)
        return to

    def _note_junk(self, size: int) -> None:
        """Count bytes that are no frame; of a tag its header, as some of them come together and thousands do not."""
        self._junk_bytes += size
        self.broken = self._junk_bytes > MAX_JUNK_BYTES


class AmrFramer:
    """Take an AMR file (RFC 4867, section 5) apart: a magic number, then frames whose first byte gives their size."""

    def __init__(self) -> None:
        self.broken = False
        self.codec = ""
        self._sizes: tuple[int, ...] = ()
        self._buffer = bytearray()

    def feed(self, data: bytes, *, end: bool = False) -> Iterator[bytes]:
        """See `Framer`. Another file may follow."""
        self._buffer += data
        at = 0
        try:
            while at < len(self._buffer):
                if not self._sizes or self._buffer[at] == _AMR_MAGIC[0]:
                    taken = self._read_magic(bytes(self._buffer[at : at + len(_AMR_WB_MAGIC)]))
                    if not taken:
                        break
                    at += taken
                    continue
                size = self._frame_bytes(self._buffer[at])
                if len(self._buffer) < at + size:
                    break
                at += size
                yield bytes(self._buffer[at - size : at])
        except InvalidAudio:
            self.broken = True
            at = len(self._buffer)
            raise
        finally:
            del self._buffer[:at]

    def _read_magic(self, head: bytes) -> int:
        """Return the size of the magic number, 0 while it is not complete."""
        for magic, codec, sizes in (
            (_AMR_MAGIC, "libopencore_amrnb", _AMR_NB_SIZES),
            (_AMR_WB_MAGIC, "libopencore_amrwb", _AMR_WB_SIZES),
        ):
            if head.startswith(magic):
                self.codec, self._sizes = codec, sizes
                return len(magic)
        if _AMR_MAGIC.startswith(head) or _AMR_WB_MAGIC.startswith(head):
            return 0
        raise InvalidAudio("no AMR file with one channel: it has to begin with #!AMR or #!AMR-WB and a line feed")

    def _frame_bytes(self, kind: int) -> int:
        size = self._sizes[kind >> 3 & 15]
        if size == 0 or kind & _AMR_PADDING:
            raise InvalidAudio("the AMR stream is damaged")
        return size


_SYNC: Final = 0xFF
_ID3: Final = b"ID3"
_APE: Final = b"APETAGEX"
_ID3_HEADER_BYTES: Final = 10
_TAG_HEADER_BYTES: Final = 32

_MP3_RATES: Final = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}
_MPEG1: Final = 3
_MP3_KBITS: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_LOW_KBITS: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_INDEX_MARKS: Final = (*((place, mark) for place in (13, 21, 36) for mark in (b"Xing", b"Info")), (36, b"VBRI"))

_AMR_MAGIC: Final = b"#!AMR\n"
_AMR_WB_MAGIC: Final = b"#!AMR-WB\n"
_AMR_PADDING: Final = 0b1000_0011
"""Bits of a frame's first byte that are zero. Those of `#` are not: it begins the next file."""
_AMR_NB_SIZES: Final = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
_AMR_WB_SIZES: Final = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)


def _tag_bytes(head: bytes) -> int | None:
    """Return the size of the tag that begins so; 0 where none does, None while more bytes are needed (32 at most)."""
    if head.startswith(_ID3) and len(head) >= _ID3_HEADER_BYTES:
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
        footer = head[5] & 0x10
        return 0 if max(head[6:10]) > 0x7F else _ID3_HEADER_BYTES * (2 if footer else 1) + size
    if head.startswith(_APE) and len(head) >= _TAG_HEADER_BYTES:
        items_follow = head[23] & 0x20
        return _TAG_HEADER_BYTES + (int.from_bytes(head[12:16], "little") if items_follow else 0)
    begun = any(magic.startswith(head[: len(magic)]) for magic in (_ID3, _APE))
    return None if begun else 0


def _mp3_frame_bytes(head: bytes) -> int:
    word = int.from_bytes(head[:4], "big")
    version, layer, rate = word >> 19 & 3, word >> 17 & 3, word >> 10 & 3
    bitrate, padding = word >> 12 & 15, word >> 9 & 1
    if word >> 21 != 0x7FF or version not in _MP3_RATES or layer != 1 or rate == 3 or bitrate in (0, 15):
        return 0
    kbits = (_MP3_KBITS if version == _MPEG1 else _MP3_LOW_KBITS)[bitrate]
    return (144_000 if version == _MPEG1 else 72_000) * kbits // _MP3_RATES[version][rate] + padding


def _adts_frame_bytes(head: bytes) -> int:
    word = int.from_bytes(head[:7], "big")
    size = word >> 13 & 0x1FFF
    header_bytes = 7 if word >> 40 & 1 else 9
    if word >> 44 != 0xFFF or word >> 41 & 3 or word >> 34 & 15 > 12 or size <= header_bytes:
        return 0
    return size


MP3: Final = Syntax(
    name="MP3",
    codec="mp3float",
    may_begin=re.compile(rb"\xff(?:[\xe2\xe3\xf2\xf3\xfa\xfb]|\Z)|I(?:D|\Z)|A(?:P|\Z)"),
    header_bytes=4,
    frame_bytes=_mp3_frame_bytes,
    same=0xFFFE_0C00,
    index_marks=_MP3_INDEX_MARKS,
)
ADTS: Final = Syntax(
    name="AAC (ADTS)",
    codec="aac",
    may_begin=re.compile(rb"\xff(?:[\xf0\xf1\xf8\xf9]|\Z)|I(?:D|\Z)|A(?:P|\Z)"),
    header_bytes=7,
    frame_bytes=_adts_frame_bytes,
    same=0xFFFE_FC00,
)
