"""MP3, AAC (ADTS) or AMR to mono float32 at 16 kHz, as its bytes arrive.

The frames are found by `frames` and decoded one by one; rate and channels may change between them. A damaged frame is
passed over like by any player. A stream in which nothing can be decoded is refused, however little came of it: whoever
sends the wrong file is told.

Nothing is cut off. The encoder's delay leads the audio as near-silence, and makes its times late: by 25 ms for MP3 at
44.1 kHz, 70 ms at 16 kHz, 140 ms at 8 kHz (LAME), 23 and 64 ms for AAC at 44.1 and 16 kHz (FFmpeg), 6 to 10 ms for AMR.
The padding of the last frame ends it.

It knows no session. Called by the decoder; heavy enough that the driver does that on a worker thread.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Literal, assert_never

import numpy as np

from qwen3_asr_server.audio.codec import Codec
from qwen3_asr_server.audio.frames import ADTS, MAX_JUNK_BYTES, MP3, AmrFramer, Framer, SyncFramer
from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.audio.resample import AnyRateResampler
from qwen3_asr_server.domain import AudioEncoding, Samples
from qwen3_asr_server.errors import InvalidAudio

FramedEncoding = Literal[AudioEncoding.MP3, AudioEncoding.AAC, AudioEncoding.AMR]
"""An encoding whose frames say themselves how long they are."""


class CompressedAudio:
    """Decode a stream of frames; the audio of a frame comes when the frame is complete.

    Args:
        encoding: of the frames.
        max_append_s: longest audio in one message, in seconds. Decoding stops at the frame that passes it.
    """

    all_came: Final = False
    ended: Final = False

    def __init__(self, encoding: FramedEncoding, max_append_s: float) -> None:
        self._name = encoding.name
        self._max_append_s = max_append_s
        self._framer = _framer(encoding)
        self._codecs: dict[str, Codec] = {}
        self._resampler = AnyRateResampler()
        self._undecodable_bytes = 0
        self._hopeless = False
        self._heard = False
        self._waiting = False

    @property
    def broken(self) -> bool:
        """There are no such frames in it (any more); every `decode` raises."""
        return self._hopeless or self._framer.broken

    def decode(self, data: bytes) -> Samples:
        """Decode the frames that these bytes complete.

        Raises:
            InvalidAudio: there is too much audio: that of this message and what was held back before it are
                dropped, and the stream goes on. Or the stream is `broken`.
        """
        if self.broken:
            raise InvalidAudio(f"the {self._name} stream could not be read before")
        self._waiting = True
        return self._take(self._framer.feed(data))

    def flush(self) -> Samples:
        """Return what is held back. An incomplete frame waits for its other bytes.

        Raises:
            InvalidAudio: bytes have come, but no frame so far that can be decoded.
        """
        tail = np.empty(0, np.float32) if self.broken else self._take(self._framer.feed(b"", end=True))
        waiting, self._waiting = self._waiting, False
        if waiting and not (self._heard or self.broken):
            raise InvalidAudio(f"no {self._name} audio could be found in what was announced as such")
        return np.concatenate([tail, self._resampler.flush()])

    def _take(self, frames: Iterator[bytes]) -> Samples:
        try:
            return self._resampler.take(self._decode_frames(frames), self._max_append_s)
        except InvalidAudio:
            self._resampler.flush()
            with suppress(InvalidAudio):
                for _ in frames:
                    pass
            raise

    def _decode_frames(self, frames: Iterator[bytes]) -> Iterator[tuple[int, Waveform]]:
        for frame in frames:
            try:
                blocks = self._codec.decode(frame)
            except InvalidAudio:
                self._undecodable_bytes += len(frame)
                self._hopeless = self._undecodable_bytes > MAX_JUNK_BYTES
                if self._hopeless:
                    raise
            else:
                self._undecodable_bytes = max(0, self._undecodable_bytes - len(frame))
                self._heard = self._heard or bool(blocks)
                yield from blocks

    @property
    def _codec(self) -> Codec:
        """The decoder of the frames that come now."""
        name = self._framer.codec
        if name not in self._codecs:
            self._codecs[name] = Codec(name, f"{self._name} audio")
        return self._codecs[name]


def _framer(encoding: FramedEncoding) -> Framer:
    match encoding:
        case AudioEncoding.MP3:
            return SyncFramer(MP3)
        case AudioEncoding.AAC:
            return SyncFramer(ADTS)
        case AudioEncoding.AMR:
            return AmrFramer()
        case _:
            assert_never(encoding)
