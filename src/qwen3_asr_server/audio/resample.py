"""Any rate to 16 kHz, packet by packet, with the same samples however the input is cut.

Made by libsoxr at its "HQ" quality: flat up to 0.91 of the lower of the two Nyquist frequencies, aliases
below -100 dB. Telephone speech at 8 kHz needs that (the cheaper "LQ" loses what lies above 2.7 kHz). The
price is delay, as output comes in bursts: measured at most 116 ms of audio held back at 8 kHz, 85 ms at
11 kHz, 40 ms at 22 to 48 kHz, 80 ms above. `flush` yields what is held back. Equal rates pass through.

It knows mono float32 only. Called by the decoders of this package.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import numpy as np
import soxr

from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.domain import SAMPLE_RATE, Samples
from qwen3_asr_server.errors import InvalidAudio

MIN_RATE: Final = 4_000
"""Hz: the lowest rate that is resampled."""
MAX_RATE: Final = 192_000
"""Hz: the highest."""
MAX_RATES_IN_A_MESSAGE: Final = 16
"""Far more than a client has reason for; every one costs a resampler."""


class Resampler:
    """A streaming resampler to 16 kHz.

    Args:
        sample_rate: of the input, in Hz, `MIN_RATE` to `MAX_RATE`.
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


class AnyRateResampler:
    """Resample what a codec gives: its rate is known with the audio only, and may change."""

    def __init__(self) -> None:
        self._rate = SAMPLE_RATE
        self._resampler = Resampler(SAMPLE_RATE)

    def take(self, blocks: Iterable[tuple[int, Waveform]], max_s: float) -> Samples:
        """Take in the audio of one message and return what is ready.

        Args:
            blocks: (rate in Hz, float32 [n], mono), in order; read one at a time, to save memory.
            max_s: longest audio to take at once, in seconds.

        Returns:
            float32 [n], mono, 16 kHz, in [-1, 1]; n may be 0.

        Raises:
            InvalidAudio: from the blocks; or there is more audio, or its rate changes too often.
        """
        parts, length_s, changes = [np.empty(0, np.float32)], Fraction(0), 0
        for rate, samples in blocks:
            length_s += Fraction(len(samples), rate)
            if length_s > max_s:
                raise InvalidAudio(f"more than {max_s:g} s of audio in one message")
            if rate != self._rate:
                parts.append(self._resampler.flush())
                self._rate, self._resampler = rate, Resampler(rate)
                changes += 1
                if changes > MAX_RATES_IN_A_MESSAGE:
                    raise InvalidAudio("the sample rate changes too often")
            parts.append(self._resampler.process(samples))
        return np.concatenate(parts)

    def flush(self) -> Samples:
        """Return the rest and begin afresh, as `Resampler.flush` does."""
        return self._resampler.flush()


def _clipped(samples: Samples) -> Samples:
    """Undo the overshoot of the filter at full scale."""
    return np.clip(samples, -1, 1, out=samples)
