"""Speex to mono float32: what the pages of an Ogg stream carry.

The stream's header gives the rate (8, 16 or 32 kHz as a rule), the channels and the frames in a packet. Positions are
not looked at: the encoder's delay and the padding of the last packet, some ten milliseconds each, stay in the audio.

Called by `ogg_audio`.
"""

import struct
from typing import Final

import numpy as np

from qwen3_asr_server.audio.codec import Codec
from qwen3_asr_server.audio.ogg import OggPage
from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.errors import InvalidAudio

SPEEX_HEAD: Final = b"Speex   "
"""What the first packet of a Speex stream begins with."""

_HEAD: Final = struct.Struct("<8s20s13i")
_RATES: Final = range(8_000, 48_001)
_MODES: Final = range(3)
_FRAMES_IN_A_PACKET: Final = range(1, 11)  # as many as encoders put there; each is 20 ms and costs no byte in the claim


class SpeexPages:
    """Decode the pages of one Speex stream.

    Args:
        head: its header, the packet on its first page.

    Raises:
        InvalidAudio: the header is damaged, or the stream is of a kind that is not supported.
    """

    def __init__(self, head: bytes) -> None:
        if len(head) < _HEAD.size or not head.startswith(SPEEX_HEAD):
            raise InvalidAudio("the Ogg stream is not Speex")
        _, _, _, _, rate, mode, _, channels, _, _, _, frames, extra_headers, _, _ = _HEAD.unpack_from(head)
        known = rate in _RATES and mode in _MODES and channels in (1, 2) and frames in _FRAMES_IN_A_PACKET
        if not known or extra_headers < 0:
            raise InvalidAudio("unsupported Speex stream")
        self.sample_rate: Final[int] = rate
        self._headers_left = 1 + extra_headers
        self._codec = Codec("speex", "a Speex packet", header=head[: _HEAD.size])

    def decode(self, page: OggPage) -> Waveform:
        """Decode the next page to float32 [n] at the stream's rate.

        Raises:
            InvalidAudio: one of its packets cannot be read.
        """
        headers = min(self._headers_left, len(page.packets))
        self._headers_left -= headers
        parts = [np.empty(0, np.float32)]
        for packet in filter(None, page.packets[headers:]):
            parts += [samples for _, samples in self._codec.decode(packet)]
        return np.concatenate(parts)
