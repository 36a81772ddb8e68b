"""Opus to mono float32: bare packets, or what the pages of an Ogg stream carry (RFC 7845).

libopus decodes at 48 kHz whatever the encoder was fed with and mixes stereo down. In Ogg the pre-skip, the output gain
and the end position are honoured, page by page, so that the audio does not depend on how the bytes arrive.

Called by the decoder and by `ogg_audio`; heavy enough that the driver does that on a worker thread.
"""

import struct
from typing import Final

import numpy as np

from qwen3_asr_server.audio.codec import Codec
from qwen3_asr_server.audio.ogg import OggPage
from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import InvalidAudio

OPUS_RATE: Final = 48_000
"""Hz. The rate of the decoder and of every position in an Ogg Opus stream."""

OPUS_HEAD: Final = b"OpusHead"
"""What the first packet of an Ogg Opus stream begins with."""

_HEAD: Final = struct.Struct("<8sBBHIhB")
_TAGS: Final = b"OpusTags"  # no audio packet begins so: "Op" would claim 48 frames of 20 ms, the limit is 120 ms


class OpusPackets:
    """Decode bare packets to 16 kHz, one a message; each holds at most 120 ms."""

    broken: Final = False
    all_came: Final = False
    ended: Final = False

    def __init__(self) -> None:
        self._codec = _codec()
        self._resampler = Resampler(OPUS_RATE)

    def decode(self, data: bytes) -> Samples:
        """Decode one packet.

        Raises:
            InvalidAudio: these bytes are no opus packet; the next one is read as usual.
        """
        return self._resampler.process(_decode(self._codec, data))

    def flush(self) -> Samples:
        """Return what the resampler holds back. The next packet is decoded as the follower of the last."""
        return self._resampler.flush()


class OpusPages:
    """Decode the pages of one Ogg Opus stream.

    Args:
        head: its identification header, the packet on its first page.

    Raises:
        InvalidAudio: the header is damaged, or the stream is of a kind that is not supported.
    """

    sample_rate: Final = OPUS_RATE

    def __init__(self, head: bytes) -> None:
        if len(head) < _HEAD.size or not head.startswith(OPUS_HEAD):
            raise InvalidAudio("the Ogg stream is not Opus")
        _, version, channels, self._to_skip, _, gain_q8_db, mapping = _HEAD.unpack_from(head)
        if version >= 16 or not 1 <= channels <= 2 or mapping != 0:
            raise InvalidAudio("unsupported Ogg Opus stream: only mono and stereo can be read")
        self._gain = 10 ** (gain_q8_db / 256 / 20)
        self._granule = 0
        self._codec = _codec()

    def decode(self, page: OggPage) -> Waveform:
        """Decode the next page to float32 [n] at 48 kHz.

        Raises:
            InvalidAudio: one of its packets cannot be read.
        """
        packets = [packet for packet in page.packets if packet and not packet.startswith(_TAGS)]
        samples = np.concatenate([np.empty(0, np.float32), *(_decode(self._codec, packet) for packet in packets)])
        if page.last and self._granule <= page.granule:
            samples = samples[: page.granule - self._granule]
        self._granule = max(self._granule, page.granule)
        skipped = min(self._to_skip, len(samples))
        self._to_skip -= skipped
        louder: Waveform = samples[skipped:] * np.float32(self._gain)
        return louder.clip(-1, 1)


def _codec() -> Codec:
    return Codec("libopus", "an opus packet", layout="mono")


def _decode(codec: Codec, packet: bytes) -> Waveform:
    return np.concatenate([np.empty(0, np.float32), *(samples for _, samples in codec.decode(packet))])
