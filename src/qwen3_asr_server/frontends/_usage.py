"""What an answer is said to have used, for clients that want to see tokens.

Audio counts 25 tokens a second, as the vendor counts it. Text counts one token a word, or a character of a script
without spaces: engines do not tell how many tokens their models made of it, so no such figure is invented.
"""

import math
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.text.units import split_units

AUDIO_TOKENS_PER_S: Final = 25


def audio_tokens(samples: int) -> int:
    """Return the tokens of audio at 16 kHz, those that have begun included."""
    return math.ceil(samples * AUDIO_TOKENS_PER_S / SAMPLE_RATE)


def text_tokens(text: str) -> int:
    """Return the tokens of a text."""
    return len(split_units(text))


def whole_seconds(samples: int) -> int:
    """Return the seconds of audio at 16 kHz, the last begun one included."""
    return math.ceil(samples / SAMPLE_RATE)
