"""A model that recites its context instead of listening, as one that has lost the audio does.

The engine around it is the one of the real weights, with its guard. Its words and its sounds are kept apart, so that
a recitation is not simply the context.
"""

import re
from collections.abc import Sequence

from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import describe
from qwen3_asr_server.engines._qwen3_engine import WholeEngine
from qwen3_asr_server.engines._qwen3_queue import Decode, Written

SAID = "hello there"
"""What it hears without a context."""
_SOUNDS = re.compile(r" \([^)]*\)")


class Reciter:
    """Recites the words of its context, without their sounds.

    Attributes:
        contexts: what it was given, in order; empty ones are left out.
    """

    device = "none"
    dtype = "none"

    def __init__(self) -> None:
        self.contexts: list[str] = []

    def read(self, ids: Sequence[int]) -> str:
        """Return the text of ids, which are characters."""
        return "".join(map(chr, ids))

    def decode(self, batch: Sequence[Decode]) -> list[Written]:
        """Answer each with the context that it has, else with what is heard."""
        self.contexts += [wanted.context for wanted in batch if wanted.context]
        return [self._written(wanted) for wanted in batch]

    def close(self) -> None:
        """Hold nothing."""

    def _written(self, wanted: Decode) -> Written:
        header = "language English<asr_text>" if wanted.language is None else ""
        return Written(tuple(map(ord, header + (_SOUNDS.sub("", wanted.context) or SAID))), complete=True)


def reciting_engine(model: Reciter) -> WholeEngine:
    """Return an engine around it."""
    options = EngineOptions()
    return WholeEngine(describe("transformers", "a test", options.model_path, ""), options, lambda _: model, 4)
