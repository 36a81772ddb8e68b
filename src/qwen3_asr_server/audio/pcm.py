"""Linear and companded PCM bytes to mono float32, and back to 16 bits.

Packets may be cut anywhere: what is left of an incomplete frame (an odd byte, half a stereo pair) waits for
the next packet. Rates are carried along but not changed, and headers are not looked for.

Called by the decoder for plain pcm and for the inside of WAV files, and by engines that want 16 bits.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.audio.g711 import expand_alaw, expand_mulaw
from qwen3_asr_server.errors import InvalidAudio

Waveform = npt.NDArray[np.float32]
"""Audio: float32 [n], mono, at any rate, in [-1, 1]."""


class SampleType(Enum):
    """How one sample is stored; all are little-endian."""

    U8 = "unsigned 8-bit"
    S16 = "signed 16-bit"
    S24 = "signed 24-bit"
    S32 = "signed 32-bit"
    F32 = "32-bit float"
    F64 = "64-bit float"
    ALAW = "A-law"
    MULAW = "μ-law"

    @property
    def size_bytes(self) -> int:
        """Bytes of one sample."""
        match self:
            case SampleType.U8 | SampleType.ALAW | SampleType.MULAW:
                return 1
            case SampleType.S16:
                return 2
            case SampleType.S24:
                return 3
            case SampleType.S32 | SampleType.F32:
                return 4
            case SampleType.F64:
                return 8
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """What a run of PCM bytes means."""

    sample_rate: int
    """Hz."""
    sample_type: SampleType = SampleType.S16
    channels: int = 1
    """Interleaved; they are mixed down by their mean."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.sample_type.size_bytes * self.channels


class PcmDecoder:
    """Turn packets of one format into mono samples at the format's own rate."""

    def __init__(self, pcm_format: PcmFormat) -> None:
        self._format = pcm_format
        self._carry = b""

    def decode(self, data: bytes, max_s: float) -> Waveform:
        """Convert every frame that is complete now.

        Args:
            data: the next bytes, cut anywhere.
            max_s: longest audio to take at once, in seconds.

        Returns:
            float32 [n], mono, at the format's rate, in [-1, 1], finite.

        Raises:
            InvalidAudio: there is more; these frames are dropped, the next packet is read as usual.
        """
        data = self._carry + data
        whole = len(data) - len(data) % self._format.frame_bytes
        self._carry = data[whole:]
        if whole > max_s * self._format.sample_rate * self._format.frame_bytes:
            raise InvalidAudio(f"more than {max_s:g} s of audio in one message")
        samples = _to_float(memoryview(data)[:whole], self._format.sample_type)
        if self._format.channels == 1:
            return samples
        mono: Waveform = samples.reshape(-1, self._format.channels).mean(axis=1, dtype=np.float32)
        return mono


def encode_s16le(samples: Waveform) -> bytes:
    """Return float32 samples in [-1, 1] as signed 16-bit little-endian bytes; what is louder is clipped."""
    scaled: Waveform = np.rint(samples * np.float32(2**15))
    return np.clip(scaled, -(2**15), 2**15 - 1).astype("<i2").tobytes()


def _to_float(raw: memoryview, sample_type: SampleType) -> Waveform:
    match sample_type:
        case SampleType.U8:
            return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / np.float32(128)
        case SampleType.S16:
            return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(2**15)
        case SampleType.S24:
            widened = np.zeros((len(raw) // 3, 4), np.uint8)
            widened[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
            return widened.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
        case SampleType.S32:
            return np.frombuffer(raw, "<i4").astype(np.float32) / np.float32(2**31)
        case SampleType.F32:
            return _sane(np.frombuffer(raw, "<f4"))
        case SampleType.F64:
            return _sane(np.frombuffer(raw, "<f8"))
        case SampleType.ALAW:
            return expand_alaw(np.frombuffer(raw, np.uint8))
        case SampleType.MULAW:
            return expand_mulaw(np.frombuffer(raw, np.uint8))
        case _:
            assert_never(sample_type)


def _sane(values: npt.NDArray[np.floating[Any]]) -> Waveform:
    """Clip floats that a client chose freely; NaN becomes silence."""
    return np.nan_to_num(np.clip(values, -1, 1), nan=0.0).astype(np.float32)
