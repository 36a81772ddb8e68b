"""Greedy decoding with `generate` of transformers, old or new: when a row ends, and how sure the model was of it.

Imports torch and transformers, so only the model files of engines that use them import it. Knows no engine.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from qwen3_asr_server.engines._qwen3_queue import Decode, Written


class RowEnds(StoppingCriteria):  # type: ignore[misc]
    """Ends a row that has its tokens, or for which nobody waits any more.

    Args:
        batch: what the rows are.
        length: tokens of the prompts, filled up.
    """

    def __init__(self, batch: Sequence[Decode], length: int) -> None:
        self._batch = batch
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return bool [rows]: which are done."""
        new = input_ids.shape[1] - self._length
        done = [wanted.abandoned or new >= wanted.max_tokens for wanted in self._batch]
        return torch.tensor(done, device=input_ids.device)


class Chances(LogitsProcessor):  # type: ignore[misc]
    """Keeps the probability of each row's first choice at every step; changes nothing."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at float [rows, vocabulary] before a choice is made."""
        self._steps.append(torch.softmax(scores.float(), dim=-1).amax(dim=-1))
        return scores

    def rows(self) -> list[list[float]]:
        """Return the probabilities of each row."""
        return [[float(chance) for chance in row] for row in torch.stack(self._steps, dim=1).tolist()]


def written(row: Sequence[int], chances: Sequence[float], ends: frozenset[int]) -> Written:
    """Return what a row says, up to the token that ends the text.

    Args:
        row: new tokens, no more than were allowed.
        chances: the model's probability of each.
        ends: ids that end a text.
    """
    end = next((place for place, token in enumerate(row) if token in ends), None)
    upto = len(row) if end is None else end
    return Written(tuple(row[:upto]), end is not None, tuple(chances[:upto]))
