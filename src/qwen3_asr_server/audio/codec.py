"""One of FFmpeg's audio decoders (in PyAV's wheel): packets in, mono float32 at the stream's own rate out.

It knows no container and finds no packets: whoever calls it knows where they begin and end, so that no demuxer runs
here. Of the decoders used, none holds a packet back, and none needs to be drained at the end.

Called by `opus`, `speex` and `compressed`.
"""

from typing import Final

import av
import numpy as np
from av.error import FFmpegError

from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.audio.resample import MAX_RATE, MIN_RATE
from qwen3_asr_server.errors import InvalidAudio

_S16_SCALE: Final = np.float32(2**15)
_MAX_CHANNELS: Final = 7
"""PyAV reads the planes of a frame up to the first empty place, and behind the eighth there is none: with eight
channels or more it reads memory that is not the frame's, which ends the process."""


class Codec:
    """A decoder, made when its first packet comes.

    Args:
        name: FFmpeg's name of it.
        packet: what one packet is called in errors, with its article.
        layout: of the channels, where the decoder has to be told; it may mix them itself.
        sample_rate: in Hz, where the decoder has to be told.
        header: what the stream says about itself ahead of its packets, where it does.
    """

    def __init__(
        self, name: str, packet: str, *, layout: str | None = None, sample_rate: int | None = None, header: bytes = b""
    ) -> None:
        self._name = name
        self._packet = packet
        self._layout = layout
        self._sample_rate = sample_rate
        self._header = header
        self._context: av.AudioCodecContext | None = None

    def decode(self, packet: bytes) -> list[tuple[int, Waveform]]:
        """Decode the next packet of a stream.

        Args:
            packet: whole and not empty.

        Returns:
            Blocks of (rate in Hz, float32 [n], mono, in [-1, 1], finite), in order; almost always one.

        Raises:
            InvalidAudio: these bytes are no packet, or one with eight channels or more; the next one is read as usual.
        """
        try:
            if self._context is None:
                self._context = self._open()
            return [(frame.sample_rate, _mono(frame)) for frame in self._context.decode(av.Packet(packet))]
        except FFmpegError as error:
            raise InvalidAudio(f"{self._packet} that cannot be decoded") from error

    def _open(self) -> av.AudioCodecContext:
        context = av.CodecContext.create(self._name, "r")
        assert isinstance(context, av.AudioCodecContext)
        if self._layout is not None:
            context.layout = self._layout
        if self._sample_rate is not None:
            context.sample_rate = self._sample_rate
        if self._header:
            context.extradata = self._header
        return context


def _mono(frame: av.AudioFrame) -> Waveform:
    """Mix a frame of any layout down by its mean; what is too loud is clipped, and NaN becomes silence."""
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise InvalidAudio(f"unsupported sample rate: {frame.sample_rate} Hz")
    if not 1 <= frame.layout.nb_channels <= _MAX_CHANNELS:
        raise InvalidAudio(f"unsupported number of channels: {frame.layout.nb_channels}")
    stored = frame.to_ndarray()
    channels = stored if frame.format.is_planar else stored.reshape(-1, frame.layout.nb_channels).T
    samples = channels.astype(np.float32)
    if stored.dtype == np.int16:
        samples /= _S16_SCALE
    mono: Waveform = samples[0] if len(samples) == 1 else samples.mean(axis=0, dtype=np.float32)
    return np.nan_to_num(mono, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1)
