"""Read the WAV header at the start of a byte stream, cut into packets anywhere.

The parser walks RIFF chunks without knowing the file's length: it keeps at most one header field in memory,
skips chunks it does not know, and hands on the bytes of `data`. A data size of 0, 0xFFFFFFFF or more than
ever arrives means that the audio goes on to the end of the stream. What follows a data chunk of known size
is walked like any chunk, so a second file may follow the first if it has the same format.

It knows no samples: bytes go on to `pcm`. Called by the decoder.
"""

import struct
from enum import Enum, auto
from typing import Final, assert_never

from qwen3_asr_server.audio.pcm import PcmFormat, SampleType
from qwen3_asr_server.errors import InvalidAudio

MIN_RATE: Final = 4_000
MAX_RATE: Final = 192_000
MAX_CHANNELS: Final = 32

_MAX_FORMAT_BYTES: Final = 1024
_MAX_SKIPPED_BYTES: Final = 16 * 1024 * 1024  # a cover picture is smaller, random bytes read as a size are not
_STREAMING_SIZES: Final = (0, 0xFFFF_FFFF)
_ENDLESS: Final = 1 << 62
_EXTENSIBLE: Final = 0xFFFE
_SUBFORMAT_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")


class _Expect(Enum):
    CHUNK = auto()
    FORM = auto()
    FORMAT = auto()


class WavReader:
    """An incremental parser of a stream that begins with `RIFF`.

    Attributes:
        format: of the audio bytes; known before the first of them is returned.
        broken: the stream cannot be understood any more; every `feed` raises.
    """

    def __init__(self) -> None:
        self.format: PcmFormat | None = None
        self.broken = False
        self._expect = _Expect.CHUNK
        self._wanted_bytes = 8
        self._field = bytearray()
        self._audio_bytes = 0
        self._skip_bytes = 0
        self._in_header = True

    @property
    def ended(self) -> bool:
        """All audio that the header announced has been read."""
        return not self._in_header and not self._audio_bytes

    def feed(self, data: bytes) -> bytes:
        """Take in the next bytes and return the audio among them.

        Raises:
            InvalidAudio: the file is damaged or of a kind that is not supported.
        """
        if self.broken:
            raise InvalidAudio("the WAV file's header could not be read, so its audio cannot be either")
        try:
            return self._walk(memoryview(data))
        except InvalidAudio:
            self.broken = True
            raise

    def _walk(self, data: memoryview) -> bytes:
        audio = bytearray()
        while data:
            if self._audio_bytes:
                taken = min(self._audio_bytes, len(data))
                audio += data[:taken]
                self._audio_bytes -= taken
            elif self._skip_bytes:
                taken = min(self._skip_bytes, len(data))
                self._skip_bytes -= taken
            else:
                taken = min(self._wanted_bytes - len(self._field), len(data))
                self._field += data[:taken]
                if len(self._field) == self._wanted_bytes:
                    field = bytes(self._field)
                    self._field.clear()
                    self._read_field(field)
            data = data[taken:]
        return bytes(audio)

    def _read_field(self, field: bytes) -> None:
        match self._expect:
            case _Expect.CHUNK:
                self._read_chunk_header(*struct.unpack("<4sI", field))
            case _Expect.FORM:
                if field != b"WAVE":
                    raise InvalidAudio("a RIFF file that is not a WAV file")
                self._next(_Expect.CHUNK, 8)
            case _Expect.FORMAT:
                found = _parse_format(field)
                if self.format not in (None, found):
                    raise InvalidAudio("the WAV format changes within the stream")
                self.format = found
                self._next(_Expect.CHUNK, 8)
            case _:
                assert_never(self._expect)

    def _read_chunk_header(self, name: bytes, size: int) -> None:
        padding = size % 2
        match name:
            case b"RIFF":
                self._next(_Expect.FORM, 4)
            case b"fmt ":
                if size < 16:
                    raise InvalidAudio("the WAV format chunk is too short")
                self._limit(size, _MAX_FORMAT_BYTES)
                self._next(_Expect.FORMAT, size + padding)
            case b"data":
                if self.format is None:
                    raise InvalidAudio("the WAV file has audio before its format")
                self._audio_bytes = _ENDLESS if size in _STREAMING_SIZES else size
                self._skip_bytes = padding
                self._in_header = False
            case _:
                self._limit(size, _MAX_SKIPPED_BYTES)
                self._skip_bytes = size + padding

    def _limit(self, size: int, most: int) -> None:
        if self._in_header and size > most:
            raise InvalidAudio("the WAV header is damaged")

    def _next(self, expect: _Expect, wanted_bytes: int) -> None:
        self._expect = expect
        self._wanted_bytes = wanted_bytes


def _parse_format(chunk: bytes) -> PcmFormat:
    tag, channels, sample_rate, _, block_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _SUBFORMAT_TAIL:
            raise InvalidAudio("unsupported WAV encoding: an extensible format of unknown kind")
        tag = int.from_bytes(chunk[24:26], "little")
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise InvalidAudio(f"unsupported WAV sample rate: {sample_rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(f"unsupported number of WAV channels: {channels}")
    pcm_format = PcmFormat(sample_rate, _sample_type(tag, bits), channels)
    if pcm_format.frame_bytes != block_bytes:
        raise InvalidAudio("the WAV format contradicts itself")
    return pcm_format


def _sample_type(tag: int, bits: int) -> SampleType:
    match tag, bits:
        case 1, 8:
            return SampleType.U8
        case 1, 16:
            return SampleType.S16
        case 1, 24:
            return SampleType.S24
        case 1, 32:
            return SampleType.S32
        case 3, 32:
            return SampleType.F32
        case 3, 64:
            return SampleType.F64
        case 6, 8:
            return SampleType.ALAW
        case 7, 8:
            return SampleType.MULAW
        case _:
            raise InvalidAudio(f"unsupported WAV encoding: format tag {tag}, {bits} bits")
