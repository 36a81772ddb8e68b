"""Split text into units: words in spaced scripts, characters in scripts written without spaces.

A unit owns the spaces and punctuation before it, so that units laid end to end give the text back, and
punctuation after the last word belongs to no unit until another word follows. Knows no language: scripts
are told apart by their characters. Used by `stability` and `join`.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Unit:
    """A word or character with its place in the text."""

    core: str
    """Without what stands before it."""
    start: int
    """First character, the separators before the core included."""
    end: int
    """One past the last character of the core."""


def split_units(text: str) -> list[Unit]:
    """Return the units of `text` in order. They tile it from 0 up to the end of its last word."""
    kinds = "".join(map(_kind, text)).rstrip("ifs")  # separators at the end belong to no unit: do not search them
    return [Unit(text[m.start(1) : m.end()], m.start(), m.end()) for m in _UNIT.finditer(kinds)]


def is_unspaced(char: str) -> bool:
    """Return whether no space belongs beside `char`: unspaced scripts and full-width punctuation."""
    return _kind(char) in "uf"


_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # radicals, 々〆〇, numerals
    r"\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"  # kana, Bopomofo, Han
    r"\U00020000-\U0003ffff]"
)
_INNER = "'’-‐.,:/@_&"
_UNIT = re.compile(r"[^uwm]*(um*|[wm]+(?:i[wm]+)*)")


@lru_cache(maxsize=8192)
def _kind(char: str) -> str:
    """Return the class of a character.

    `u` unspaced letter, `w` other letter or digit, `m` mark on a letter, `i` may stand inside a word,
    `f` full-width punctuation, `s` anything else that separates.
    """
    match unicodedata.category(char)[0]:
        case "M":
            return "m"
        case "L" | "N":
            return "u" if _UNSPACED.match(char) else "w"
    if char in _INNER:
        return "i"
    return "f" if not char.isspace() and unicodedata.east_asian_width(char) in "WF" else "s"
