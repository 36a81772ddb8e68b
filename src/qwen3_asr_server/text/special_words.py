"""Words that a user does not want to read: hidden behind stars, or left out.

A word counts where it stands by itself; in scripts without spaces, wherever it stands. Case does not matter. Texts keep
their length until they are finished, so that the places of their words stay known. Pure; knows no wire format.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.text.units import is_unspaced

_GONE: Final = "\0"
_SPACES: Final = re.compile(r" {2,}")


@dataclass(frozen=True, slots=True)
class SpecialWords:
    """What to hide and what to leave out."""

    hidden: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def marked(self, text: str) -> str:
        """Return a text of the same length, in which every character to hide is a star; `finished` ends it."""
        for words, mark in ((self.left_out, _GONE), (self.hidden, "*")):
            if pattern := _pattern(words):
                text = "".join(
                    mark * len(part) if place % 2 else part for place, part in enumerate(pattern.split(text))
                )
        return text


def finished(marked: str) -> str:
    """Return what is left of a marked text, or of a part of it."""
    if _GONE not in marked:
        return marked
    return _SPACES.sub(" ", marked.replace(_GONE, "")).strip()


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds any of these words, in one group; None if there are none."""
    # The longest first: of two that begin alike, the whole of the longer one is meant.
    found = sorted(filter(None, (word.strip() for word in words)), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(_alone, found))})", re.IGNORECASE) if found else None


def _alone(word: str) -> str:
    before = "" if is_unspaced(word[0]) else r"(?<!\w)"
    after = "" if is_unspaced(word[-1]) else r"(?!\w)"
    return before + re.escape(word) + after
