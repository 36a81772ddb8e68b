"""What every engine with Qwen3-ASR weights makes of an answer: a judgement, and a text that is fit to be sent.

Knows no tokenizer and no model library. The streams of the Qwen3-ASR engines call it.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, Hypothesis, Samples
from qwen3_asr_server.text.guard import Suspicion, find_loop

_BLOCK_SAMPLES: Final = SAMPLE_RATE // 50
_SILENCE: Final = 5e-4
"""Root mean square of 20 ms, -66 dB of full scale, below which nothing is audible: no microphone is so quiet."""


def mended(hypothesis: Hypothesis, suspicion: Suspicion | None) -> Hypothesis:
    """Return what may be sent of an answer that was suspicious a second time too."""
    match suspicion:
        case Suspicion.TEXT_ON_SILENCE:
            return replace(hypothesis, text="")
        case Suspicion.LOOP:
            return replace(hypothesis, text=without_loop(hypothesis.text))
    return hypothesis


def without_loop(text: str) -> str:
    """Return a text in which what is said again and again stands once, as often as another loop is left."""
    while (loop := find_loop(text)) is not None:
        text = (text[: loop.first_end] + text[loop.end :]).strip()
    return text


def audible_samples(audio: Samples) -> int:
    """Return how many samples are in blocks that are not silent."""
    blocks = audio[: len(audio) // _BLOCK_SAMPLES * _BLOCK_SAMPLES].reshape(-1, _BLOCK_SAMPLES)
    return int(np.count_nonzero(np.mean(blocks**2, axis=1) >= _SILENCE**2)) * _BLOCK_SAMPLES
