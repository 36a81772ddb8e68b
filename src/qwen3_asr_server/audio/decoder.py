"""Whatever a client appends to mono float32 at 16 kHz.

The format that the client announced says where to look; the first bytes of a stream decide: a WAV header in
pcm, `OggS` in opus. A stream lasts until `flush` or `reset`; after that a header may come again. The result
does not depend on how the bytes are cut, except for bare opus packets, which are one a message.

A container that cannot be read is refused to its end, or until a message begins with a new header: its
payload must not be mistaken for pcm. It knows no session and no thread; the driver of a session owns one,
calls it in order, and away from its event loop when `is_heavy` says so.
"""

from typing import Final, Protocol, assert_never

import numpy as np

from qwen3_asr_server.audio.ogg import CAPTURE
from qwen3_asr_server.audio.opus import OggOpus, OpusPackets
from qwen3_asr_server.audio.pcm import PcmDecoder, PcmFormat
from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.audio.wav import WavReader, looks_like_wav
from qwen3_asr_server.domain import AudioEncoding, AudioFormat, Samples

HEAVY_BYTES: Final = 256 * 1024
"""8 s of pcm at 16 kHz; decoding them takes a few milliseconds."""


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
        if self._stream is not None and self._stream.broken and self._opens_container(data):
            self._stream = None
        if self._stream is None:
            data = self._held + data
            self._stream = self._open(data)
        if self._stream is None:
            self._held = data
            return np.empty(0, np.float32)
        self._held = b""
        return self._stream.decode(data) if data else np.empty(0, np.float32)

    def flush(self) -> Samples:
        """End the stream: return the audio that was held back, as `decode` does. A new stream begins."""
        first = np.empty(0, np.float32)
        if self._held and self._format.encoding is AudioEncoding.PCM:
            self._stream = self._plain_pcm()
            first = self._stream.decode(self._held)
        tail = np.empty(0, np.float32) if self._stream is None else self._stream.flush()
        self.reset()
        return np.concatenate([first, tail])

    def reset(self) -> None:
        """Forget everything; a new stream begins."""
        self._stream = None
        self._held = b""

    def is_heavy(self, data: bytes) -> bool:
        """Tell whether decoding this message may hold up an event loop."""
        return self._format.encoding is AudioEncoding.OPUS or len(data) > HEAVY_BYTES

    def _open(self, head: bytes) -> "_Stream | None":
        """Choose the reader by the stream's first bytes; None while they may still become a header."""
        match self._format.encoding:
            case AudioEncoding.PCM:
                match looks_like_wav(head):
                    case True:
                        return _Wav(self._max_append_s)
                    case False:
                        return self._plain_pcm()
                    case None:
                        return None
            case AudioEncoding.OPUS:
                if head.startswith(CAPTURE):
                    return OggOpus(self._max_append_s)
                return None if CAPTURE.startswith(head) else OpusPackets()
            case _:
                assert_never(self._format.encoding)

    def _opens_container(self, data: bytes) -> bool:
        return data.startswith(CAPTURE) or looks_like_wav(data) is True

    def _plain_pcm(self) -> "_Pcm":
        return _Pcm(PcmFormat(self._format.sample_rate), self._max_append_s)


class _Stream(Protocol):
    """A reader of one stream, from its first byte on."""

    @property
    def broken(self) -> bool: ...
    def decode(self, data: bytes) -> Samples: ...
    def flush(self) -> Samples: ...


class _Pcm:
    """Samples without a header."""

    broken: Final = False

    def __init__(self, pcm_format: PcmFormat, max_append_s: float) -> None:
        self._decoder = PcmDecoder(pcm_format)
        self._resampler = Resampler(pcm_format.sample_rate)
        self._max_append_s = max_append_s

    def decode(self, data: bytes) -> Samples:
        return self._resampler.process(self._decoder.decode(data, self._max_append_s))

    def flush(self) -> Samples:
        return self._resampler.flush()


class _Wav:
    """A WAV file, whose header overrides what was announced."""

    def __init__(self, max_append_s: float) -> None:
        self._reader = WavReader()
        self._pcm: _Pcm | None = None
        self._max_append_s = max_append_s

    @property
    def broken(self) -> bool:
        return self._reader.broken

    def decode(self, data: bytes) -> Samples:
        audio = self._reader.feed(data)
        if self._pcm is None and self._reader.format is not None:
            self._pcm = _Pcm(self._reader.format, self._max_append_s)
        return np.empty(0, np.float32) if self._pcm is None else self._pcm.decode(audio)

    def flush(self) -> Samples:
        return np.empty(0, np.float32) if self._pcm is None else self._pcm.flush()
