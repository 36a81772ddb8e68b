"""What every engine with Qwen3-ASR weights makes of an answer: a judgement, and a text that is fit to be sent.

Knows no tokenizer and no model library. The streams of the Qwen3-ASR engines call it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples
from qwen3_asr_server.text.guard import Suspicion, find_loop

_BLOCK_SAMPLES: Final = SAMPLE_RATE // 50
_SILENCE: Final = 5e-4
"""Root mean square of 20 ms, -66 dB of full scale, below which nothing is audible: no microphone is so quiet."""
_HALF_CHARACTER: Final = "\ufffd"


def mended(hypothesis: Hypothesis, suspicion: Suspicion | None) -> Hypothesis:
    """Return what may be sent of an answer that was suspicious a second time too."""
    match suspicion:
        case None:
            return hypothesis
        case Suspicion.TEXT_ON_SILENCE:
            return replace(hypothesis, text="")
        case Suspicion.LOOP:
            hypothesis = replace(hypothesis, text=without_loop(hypothesis.text))
    return replace(hypothesis, text=hypothesis.text.rstrip(_HALF_CHARACTER))


def said_once(ids: Sequence[int], chances: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return ids in which what is written again and again stands once, and what is left of their probabilities.

    An answer that was cut in the middle of a word shows its loop in ids, not in words.
    """
    ids, chances = tuple(ids), tuple(chances)
    while (loop := find_loop(ids)) is not None:
        ids = ids[: loop.first_end] + ids[loop.end :]
        chances = chances[: loop.first_end] + chances[loop.end :]
    return ids, chances


def without_loop(text: str) -> str:
    """Return a text in which what is said again and again stands once, as often as another loop is left."""
    while (loop := find_loop(text)) is not None:
        text = (text[: loop.first_end] + text[loop.end :]).strip()
    return text


def audible_samples(audio: Samples) -> int:
    """Return how many samples are in blocks that are not silent."""
    blocks = audio[: len(audio) // _BLOCK_SAMPLES * _BLOCK_SAMPLES].reshape(-1, _BLOCK_SAMPLES)
    return int(np.count_nonzero(np.mean(blocks**2, axis=1) >= _SILENCE**2)) * _BLOCK_SAMPLES
