"""A session's audio, addressed by the absolute sample index of the session clock.

It grows at the end and is trimmed at the front. Appends cost amortised O(1) a sample; memory stays within a
small multiple of what is still needed. A range inside the buffer is read without a copy: samples that were
written are never changed or moved in place, so a view stays valid whatever is appended or trimmed later.

It does not know utterances, pieces or VAD frames. The session machine owns one and says what may go.
"""

from typing import Final

import numpy as np

from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, Samples

MIN_BLOCK_SAMPLES: Final = 2 * SAMPLE_RATE
"""Smallest block (128 kB): below it, saving memory costs more copies than it is worth."""

QUIET_STEP_SAMPLES: Final = 160
"""10 ms: how finely `quietest` looks; a pause between words is several times longer."""


class Timeline:
    """A growing sample buffer that forgets its front on demand.

    Args:
        start: absolute index of the first sample to come.
    """

    def __init__(self, start: int = 0) -> None:
        self._block: Samples = np.empty(MIN_BLOCK_SAMPLES, np.float32)
        self._origin = start  # absolute index of the block's first sample
        self._start = start
        self._end = start

    @property
    def start(self) -> int:
        """Absolute index of the first sample that can still be read."""
        return self._start

    @property
    def end(self) -> int:
        """Absolute index one past the last sample received."""
        return self._end

    @property
    def allocated_samples(self) -> int:
        """Samples that the buffer holds memory for; views handed out earlier may hold more."""
        return len(self._block)

    def append(self, samples: Samples) -> None:
        """Add audio at the end; it is copied.

        Args:
            samples: float32 [n], mono, 16 kHz, in [-1, 1].
        """
        used = self._end - self._origin
        if used + len(samples) > len(self._block):
            kept = self._end - self._start
            self._move_to_block(2 * (kept + len(samples)))
            used = kept
        self._block[used : used + len(samples)] = samples
        self._end += len(samples)

    def read(self, start: int, upto: int) -> Samples:
        """Return the audio of `[start, upto)`; what lies past `end` is silence.

        Args:
            start: absolute index, not before `self.start`.
            upto: absolute index, not before `start`.

        Returns:
            float32 [upto - start], read-only. A view where the range ends within the buffer, else a copy;
            either stays as it is for as long as the caller keeps it.
        """
        assert self._start <= start <= upto, "the range must be ordered and not trimmed yet"
        held = self._block[min(start, self._end) - self._origin : min(upto, self._end) - self._origin]
        audio = held if upto <= self._end else np.pad(held, (0, upto - start - len(held)))
        audio.flags.writeable = False
        return audio

    def trim(self, before: int) -> None:
        """Forget what lies before an absolute index; past `end` it forgets all that was received."""
        self._start = min(max(self._start, before), self._end)
        kept = self._end - self._start
        if len(self._block) > max(4 * kept, MIN_BLOCK_SAMPLES):
            self._move_to_block(2 * kept)

    def quietest(
        self, start: int, upto: int, window_samples: int = GRID_SAMPLES, *, step_samples: int = QUIET_STEP_SAMPLES
    ) -> int:
        """Find the best place for a cut: the centre of the window with the least energy.

        Args:
            start: absolute index where the search begins, not before `self.start`.
            upto: absolute index one past the search; what lies past `end` is silence.
            window_samples: length of the window; 80 ms unless told.
            step_samples: distance between two windows that are compared.

        Returns:
            Absolute index of the centre of the quietest window that lies within `[start, upto)`, the
            earliest of equals; the middle of the range where no window fits.
        """
        audio = self.read(start, upto)
        if len(audio) < window_samples:
            return start + len(audio) // 2
        windows = np.lib.stride_tricks.sliding_window_view(audio, window_samples)[::step_samples]
        energy = np.einsum("ij,ij->i", windows, windows)
        return start + int(energy.argmin()) * step_samples + window_samples // 2

    def _move_to_block(self, size: int) -> None:
        """Continue in a fresh block; the old one is left as it is for those who hold views of it."""
        kept = self._block[self._start - self._origin : self._end - self._origin]
        block = np.empty(max(size, MIN_BLOCK_SAMPLES), np.float32)
        block[: len(kept)] = kept
        self._block = block
        self._origin = self._start
