"""What a voice activity detector is: a function from a batch of frames and states to probabilities.

State is explicit, a row a session, so that one call can score the frames of many sessions together.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class VadModel(Protocol):
    """A loaded detector. Not thread-safe: the batcher calls it from one thread."""

    name: str

    def new_state(self) -> Floats:
        """Return the state of a stream that has heard nothing: float32, any fixed shape."""
        ...

    def score(self, frames: Floats, states: Floats) -> tuple[Floats, Floats]:
        """Score one frame of each of `b` streams.

        Args:
            frames: float32 [b, 512], mono, 16 kHz, in [-1, 1].
            states: float32 [b, *state shape].

        Returns:
            Speech probabilities, float32 [b] in [0, 1], and the new states, float32 [b, *state shape].
        """
        ...
