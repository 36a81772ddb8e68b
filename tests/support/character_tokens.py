"""The vocabulary of unit tests around vLLM: a token is a character, and the special ones have ids of their own."""

import re
from collections.abc import Sequence

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>"]
FIRST = 0x110000
"""Ids of the special tokens follow those of the characters."""


def encode(text: str) -> list[int]:
    """Return the ids of a text."""
    parts = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
    return [
        id_ for part in parts for id_ in ([FIRST + SPECIAL.index(part)] if part in SPECIAL else [ord(c) for c in part])
    ]


def decode(ids: Sequence[int]) -> str:
    """Return the text of ids."""
    return "".join(SPECIAL[i - FIRST] if i >= FIRST else chr(i) for i in ids)
