"""A voice activity detector without a model: speech is what is loud.

Deterministic, exact and fast, for tests whose subject is not the detector. Same interface as `vad.silero`.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class EnergyVad:
    """Probability 0.98 for frames at or over a level, 0.02 below it.

    Args:
        threshold: root mean square of a frame, in [0, 1].
    """

    name = "energy"

    def __init__(self, threshold: float = 0.01) -> None:
        self._threshold = threshold

    def new_state(self) -> Floats:
        """Return float32 [1]: the frames heard so far, so that tests can see states travel."""
        return np.zeros(1, np.float32)

    def score(self, frames: Floats, states: Floats) -> tuple[Floats, Floats]:
        """Score float32 [b, 512] frames; see `VadModel.score`."""
        loud = np.sqrt(np.mean(np.square(frames), axis=1)) >= self._threshold
        return np.where(loud, np.float32(0.98), np.float32(0.02)), states + 1
