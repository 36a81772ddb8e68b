"""Read one WAV file at the start of a byte stream, cut into packets anywhere.

The parser walks RIFF chunks without knowing the file's length: it keeps at most one header field in memory,
skips chunks it does not know, and hands on the bytes of `data`. A data size of 0, 0xFFFFFFFF or more than
ever arrives means that the audio goes on to the end of the stream. Behind a data chunk of known size, only what has
the name and size of a chunk that stands there in real files is taken for one. Another `RIFF` begins the next file and
is left to the next reader. All else is sound: bare samples behind a header are heard whatever size it announced.

It knows no samples: bytes go on to `pcm`. Called by the decoder.
"""

import struct
from enum import Enum, auto
from typing import Final, assert_never

from qwen3_asr_server.audio.pcm import PcmFormat, SampleType
from qwen3_asr_server.audio.resample import MAX_RATE, MIN_RATE
from qwen3_asr_server.errors import InvalidAudio

MAX_CHANNELS: Final = 32

_MAX_FORMAT_BYTES: Final = 1024
_MAX_SKIPPED_BYTES: Final = 16 * 1024 * 1024  # a cover picture is smaller, random bytes read as a size are not
_STREAMING_SIZES: Final = (0, 0xFFFF_FFFF)
_ENDLESS: Final = 1 << 62
_EXTENSIBLE: Final = 0xFFFE
_SUBFORMAT_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
_CHUNK: Final = struct.Struct("<4sI")
_FILE: Final = b"RIFF"
_BEHIND_AUDIO: Final = (
    *(_FILE, b"data", b"LIST", b"DISP", b"JUNK", b"junk", b"PAD ", b"FLLR", b"fact", b"PEAK", b"levl", b"cue "),
    *(b"plst", b"smpl", b"inst", b"acid", b"strc", b"bext", b"cart", b"umid", b"link", b"iXML", b"axml", b"chna"),
    *(b"_PMX", b"id3 ", b"ID3 ", b"afsp", b"MD5 "),
)


class _Expect(Enum):
    CHUNK = auto()
    FORM = auto()
    FORMAT = auto()
    BEHIND_AUDIO = auto()


class WavReader:
    """An incremental parser of a stream that begins with `RIFF`.

    Attributes:
        format: of the audio bytes; known before the first of them is returned.
        broken: the stream cannot be understood any more; every `feed` raises.
        unread: the beginning of the next file, with all that was fed behind it. When there is any, the reader has
            done its work.
    """

    def __init__(self) -> None:
        self.format: PcmFormat | None = None
        self.broken = False
        self.unread = b""
        self._expect = _Expect.CHUNK
        self._wanted_bytes = _CHUNK.size
        self._field = bytearray()
        self._audio_bytes = 0
        self._skip_bytes = 0
        self._padding = b""
        self._overrun = False

    @property
    def all_came(self) -> bool:
        """All audio that the header announced has been read; there may be more behind it."""
        return self._expect is _Expect.BEHIND_AUDIO and (self._overrun or not self._audio_bytes)

    @property
    def ended(self) -> bool:
        """All audio that the header announced has been read, and nothing has been begun behind it."""
        begun = self._overrun or self._skip_bytes or len(self._field) > len(self._padding)
        return self.all_came and not begun

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
        while data and not self.unread:
            if self._audio_bytes:
                taken = min(self._audio_bytes, len(data))
                audio += data[:taken]
                self._audio_bytes -= taken
            elif self._skip_bytes:
                taken = min(self._skip_bytes, len(data))
                self._skip_bytes -= taken
            elif self._expect is _Expect.BEHIND_AUDIO:
                taken = 1
                self._field += data[:taken]
                audio += self._look_behind_audio()
            else:
                taken = min(self._wanted_bytes - len(self._field), len(data))
                self._field += data[:taken]
                if len(self._field) == self._wanted_bytes:
                    field = bytes(self._field)
                    self._field.clear()
                    self._read_field(field)
            data = data[taken:]
        if self.unread:
            self.unread += data
        return bytes(audio)

    def _read_field(self, field: bytes) -> None:
        match self._expect:
            case _Expect.CHUNK:
                self._read_chunk_header(*_CHUNK.unpack(field))
            case _Expect.FORM:
                if field != b"WAVE":
                    raise InvalidAudio("a RIFF file that is not a WAV file")
                self._next(_Expect.CHUNK, _CHUNK.size)
            case _Expect.FORMAT:
                self.format = _parse_format(field)
                self._next(_Expect.CHUNK, _CHUNK.size)
            case _Expect.BEHIND_AUDIO:
                raise AssertionError("what is behind the audio is looked at byte by byte")
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
                _limit(size, _MAX_FORMAT_BYTES)
                self._next(_Expect.FORMAT, size + padding)
            case b"data":
                if self.format is None:
                    raise InvalidAudio("the WAV file has audio before its format")
                self._begin_audio(size, self.format)
            case _:
                _limit(size, _MAX_SKIPPED_BYTES)
                self._skip_bytes = size + padding

    def _look_behind_audio(self) -> bytes:
        """Take the field for a chunk, wait while it may become one, or return it as sound that goes on."""
        field = bytes(self._field)
        heads = [head for head in (field[len(self._padding) :], field) if _may_be_behind_audio(head)]
        if not heads:
            self._field.clear()
            self._audio_bytes, self._overrun = _ENDLESS, True
            return field.removeprefix(self._padding)
        head = heads[0]
        if len(head) < _CHUNK.size:
            return b""
        self._field.clear()
        name, size = _CHUNK.unpack(head)
        if name == _FILE:
            self.unread = head
        elif name == b"data" and self.format is not None:
            self._begin_audio(size, self.format)
        else:
            self._skip_bytes = size
            self._expect_behind(size)
        return b""

    def _begin_audio(self, size: int, pcm_format: PcmFormat) -> None:
        self._audio_bytes = _ENDLESS if size in _STREAMING_SIZES else size
        self._expect_behind(size)
        if size % pcm_format.frame_bytes:
            self._padding = b""  # no such file was written: the size is made up, and the samples go on

    def _expect_behind(self, size: int) -> None:
        """Look behind the chunk of this size that begins now; not every writer pads it to an even size."""
        self._padding = bytes(size % 2)
        self._expect = _Expect.BEHIND_AUDIO

    def _next(self, expect: _Expect, wanted_bytes: int) -> None:
        self._expect = expect
        self._wanted_bytes = wanted_bytes


def _may_be_behind_audio(head: bytes) -> bool:
    """Tell whether the first 0 to 8 bytes may begin a chunk that stands behind audio, or the next file."""
    name, size = head[:4], head[4 : _CHUNK.size]
    if not any(each.startswith(name) for each in _BEHIND_AUDIO):
        return False
    return name in (_FILE, b"data") or len(size) < 4 or int.from_bytes(size, "little") <= _MAX_SKIPPED_BYTES


def _limit(size: int, most: int) -> None:
    if size > most:
        raise InvalidAudio("the WAV header is damaged")


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
