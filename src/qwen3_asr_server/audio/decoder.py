"""Whatever a client appends to mono float32 at 16 kHz.

The first bytes of a stream decide: a WAV header or `OggS` is believed whatever was announced, and a container that
neither can be read nor was announced is refused with a word on what to send; else the announced format holds. The
result does not depend on how the bytes are cut, except for bare opus packets, which are one a message.

An item may end in mid-stream (`flush`, `drop`): the container then goes on behind it, until it has ended by its own
account or a new header comes first in the next item. Within an item, a message that begins with a header begins a new
stream once the container has given all that it announced. One that is broken is refused until the item ends or a
message begins with a new header: its payload must not be mistaken for pcm.

It knows no session and no thread; the driver of a session owns one, calls it in order, and away from its event
loop when `is_heavy` says so.
"""

from contextlib import suppress
from typing import Final, Protocol, assert_never

import numpy as np

from qwen3_asr_server.audio.compressed import CompressedAudio
from qwen3_asr_server.audio.containers import Container, begins_ogg, container_of
from qwen3_asr_server.audio.ogg import CAPTURE
from qwen3_asr_server.audio.ogg_audio import OggAudio
from qwen3_asr_server.audio.opus import OpusPackets
from qwen3_asr_server.audio.pcm import PcmDecoder, PcmFormat
from qwen3_asr_server.audio.refused import Refused, begins_as, refusal
from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.audio.wav import WavReader
from qwen3_asr_server.domain import SAMPLE_RATE, AudioEncoding, AudioFormat, Samples
from qwen3_asr_server.errors import InvalidAudio

HEAVY_BYTES: Final = 32 * 1024
"""2 s of pcm at 8 kHz, which are resampled in 2 to 3 ms; clients send a tenth of that at once."""
MAX_FILES_IN_A_MESSAGE: Final = 16
"""Far more than a client has reason for; every one costs a resampler."""


class StreamDecoder:
    """Decode one client's audio.

    Args:
        audio_format: what the client announced.
        max_append_s: longest audio in one message, in seconds.
    """

    def __init__(self, audio_format: AudioFormat, *, max_append_s: float = 1200) -> None:
        self._format = audio_format
        self._max_append_s = max_append_s
        self._stream: _Stream | None = None
        self._interrupted: _Stream | None = None
        self._held = b""

    def decode(self, data: bytes) -> Samples:
        """Decode the next message.

        Args:
            data: bytes as they came; may be empty.

        Returns:
            float32 [n], mono, 16 kHz, in [-1, 1], finite: what is ready now; n may be 0. Resampling holds
            back up to 120 ms (see `resample`), a container what is incomplete.

        Raises:
            InvalidAudio: nothing of this message is kept. Later messages are decoded as usual, unless a
                container's structure is lost (see the module).
        """
        before = np.empty(0, np.float32)
        if self._stream is not None and _gives_way(self._stream, data):
            before = self._stream.flush()
            self._stream = self._interrupted = None
        if self._stream is None:
            data = self._held + data
            self._stream = self._open(data)
        if self._stream is None:
            self._held = data
            return before
        self._held = b""
        samples = self._stream.decode(data) if data else np.empty(0, np.float32)
        return np.concatenate([before, samples]) if len(before) else samples

    def flush(self) -> Samples:
        """End an item: return the audio that was held back, as `decode` does. A container goes on behind it.

        What is left of an incomplete sample of plain pcm is lost.

        Raises:
            InvalidAudio: as `decode` does.
        """
        stream = self._stream or self._interrupted
        if stream is None and self._held and self._format.encoding is not AudioEncoding.OPUS:
            stream = self._without_container()
        held, self._held = self._held, b""
        self._stream = self._interrupted = None
        if stream is None:
            return np.empty(0, np.float32)
        try:
            first = stream.decode(held) if held else np.empty(0, np.float32)
            return np.concatenate([first, stream.flush()])
        finally:
            self._interrupted = None if stream.broken or stream.ended else stream

    def drop(self) -> None:
        """End an item like `flush` and forget its audio."""
        with suppress(InvalidAudio):
            self.flush()

    def is_heavy(self, data: bytes) -> bool:
        """Tell whether decoding this message may hold up an event loop."""
        ogg = isinstance(self._stream or self._interrupted, OggAudio) or data.startswith(CAPTURE)
        return ogg or self._format.encoding is not AudioEncoding.PCM or len(data) > HEAVY_BYTES

    def _open(self, head: bytes) -> "_Stream | None":
        """Choose the reader by an item's first bytes; None while they may still become a header."""
        container = container_of(head)
        if container is None:
            may_wait = not self._takes_packets or CAPTURE.startswith(head)
            return None if may_wait else self._without_container()
        if isinstance(self._interrupted, OggAudio) and container is Container.OGG:
            match begins_ogg(head):
                case True:
                    return OggAudio(self._max_append_s)
                case False:
                    return self._interrupted
                case None:
                    return None
        match container:
            case Container.WAV:
                return _Wav(self._max_append_s)
            case Container.OGG:
                return OggAudio(self._max_append_s)
            case Container.NONE:
                return self._without_container()
            case Container.MP3 | Container.AMR if begins_as(container, self._format.encoding):
                return self._as_announced()
            case Container.FLAC | Container.MP3 | Container.WEBM | Container.MP4 | Container.AMR:
                return Refused(refusal(container, self._format.encoding))
            case _:
                assert_never(container)

    def _without_container(self) -> "_Stream":
        return self._as_announced() if self._interrupted is None else self._interrupted

    def _as_announced(self) -> "_Stream":
        match self._format.encoding:
            case AudioEncoding.PCM:
                return _Pcm(PcmFormat(self._format.sample_rate), self._max_append_s)
            case AudioEncoding.OPUS:
                return OpusPackets()
            case AudioEncoding.MP3 | AudioEncoding.AAC | AudioEncoding.AMR as encoding:
                return CompressedAudio(encoding, self._max_append_s)
            case AudioEncoding.SPEEX:
                return Refused("The audio was announced as Speex, which has to come in Ogg, and does not begin so.")
            case _:
                assert_never(self._format.encoding)

    @property
    def _takes_packets(self) -> bool:
        """What comes are whole packets: the beginning of one must not wait for the next."""
        if self._interrupted is not None:
            return isinstance(self._interrupted, OpusPackets)
        return self._format.encoding is AudioEncoding.OPUS


def _gives_way(stream: "_Stream", message: bytes) -> bool:
    """Tell whether a message begins a new stream in the middle of an item."""
    if not (stream.broken or stream.all_came):
        return False
    match container_of(message):
        case Container.WAV:
            return True
        case Container.OGG:  # behind another one it is a chain, which the reader of Ogg takes itself
            return stream.broken or not isinstance(stream, OggAudio)
        case _:
            return False


class _Stream(Protocol):
    """A reader of one stream, from its first byte on."""

    @property
    def broken(self) -> bool:
        """Nothing more can be read from it."""
        ...

    @property
    def all_came(self) -> bool:
        """It is a container that has given all it announced; a message may begin another one."""
        ...

    @property
    def ended(self) -> bool:
        """What follows an item's end is no part of it any more."""
        ...

    def decode(self, data: bytes) -> Samples: ...
    def flush(self) -> Samples: ...


class _Pcm:
    """Samples without a header."""

    broken: Final = False
    all_came: Final = False
    ended: Final = True

    def __init__(self, pcm_format: PcmFormat, max_append_s: float) -> None:
        self._decoder = PcmDecoder(pcm_format)
        self._resampler = Resampler(pcm_format.sample_rate)
        self._max_append_s = max_append_s

    def decode(self, data: bytes) -> Samples:
        return self._resampler.process(self._decoder.decode(data, self._max_append_s))

    def flush(self) -> Samples:
        return self._resampler.flush()


class _Wav:
    """WAV files one behind the other, whose headers override what was announced."""

    def __init__(self, max_append_s: float) -> None:
        self._reader = WavReader()
        self._pcm: _Pcm | None = None
        self._max_append_s = max_append_s

    @property
    def broken(self) -> bool:
        return self._reader.broken

    @property
    def all_came(self) -> bool:
        return self._reader.all_came

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def decode(self, data: bytes) -> Samples:
        parts = [self._decode_file(data)]
        while data := self._reader.unread:
            parts.append(self.flush())
            self._reader, self._pcm = WavReader(), None
            parts.append(self._decode_file(data))
            if len(parts) > 2 * MAX_FILES_IN_A_MESSAGE or sum(map(len, parts)) > self._max_append_s * SAMPLE_RATE:
                self._reader.broken = True
                raise InvalidAudio(
                    f"more than {MAX_FILES_IN_A_MESSAGE} WAV files or {self._max_append_s:g} s of audio in one message"
                )
        return np.concatenate(parts)

    def flush(self) -> Samples:
        return np.empty(0, np.float32) if self._pcm is None else self._pcm.flush()

    def _decode_file(self, data: bytes) -> Samples:
        audio = self._reader.feed(data)
        if not audio or self._reader.format is None:
            return np.empty(0, np.float32)
        if self._pcm is None:
            self._pcm = _Pcm(self._reader.format, self._max_append_s)
        return self._pcm.decode(audio)
