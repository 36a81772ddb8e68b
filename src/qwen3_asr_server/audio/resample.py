"""Any rate to 16 kHz, packet by packet, with the same samples however the input is cut.

Made by libsoxr at its "HQ" quality: flat up to 0.91 of the lower of the two Nyquist frequencies, aliases
below -100 dB. Telephone speech at 8 kHz needs that (the cheaper "LQ" loses what lies above 2.7 kHz). The
price is delay, as output comes in bursts: measured at most 116 ms of audio held back at 8 kHz, 85 ms at
11 kHz, 40 ms at 22 to 48 kHz, 80 ms above. `flush` yields what is held back. Equal rates pass through.

It knows mono float32 only. Called by the decoders of this package.
"""

import numpy as np
import soxr

from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.domain import SAMPLE_RATE, Samples


class Resampler:
    """A streaming resampler to 16 kHz.

    Args:
        sample_rate: of the input, in Hz, 4000 to 192000.
    """

    def __init__(self, sample_rate: int) -> None:
        self._stream = None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1)

    def process(self, samples: Waveform) -> Samples:
        """Take in samples and return those that are ready.

        Args:
            samples: float32 [n], mono, at the input rate, in [-1, 1].

        Returns:
            float32 [m], mono, 16 kHz, in [-1, 1]; m may be 0.
        """
        if self._stream is None:
            return samples
        return _clipped(self._stream.resample_chunk(samples))

    def flush(self) -> Samples:
        """Return the rest and begin afresh.

        Counted from the start of the stream, n input samples give round(n * 16000 / rate) output samples.
        """
        if self._stream is None:
            return np.empty(0, np.float32)
        tail = _clipped(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        self._stream.clear()
        return tail


def _clipped(samples: Samples) -> Samples:
    """Undo the overshoot of the filter at full scale."""
    return np.clip(samples, -1, 1, out=samples)
