"""Text for a forced aligner, and what its answer means.

The aligner is given a text unit by unit and names two times for each. Units follow what Qwen3-ForcedAligner was trained
on: a Chinese character, or what stands between spaces, without punctuation. Japanese and Korean are cut up by others
(`engines._aligner_words`), Korean not always as in training. Times that contradict their neighbours are repaired
here. Knows neither models nor audio.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_IDEOGRAPHS: Final = (
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2CEB0),
    range(0x2F800, 0x2FA20),
)
_IDEOGRAPH_WEIGHT: Final = 3
"""A syllable, and so a character, takes about as long as three letters."""


@dataclass(frozen=True, slots=True)
class SpokenUnit:
    """A word or character that gets times."""

    shown: str
    """As it stands in the text, without punctuation around it."""
    spoken: str
    """What the aligner is given: letters, digits and apostrophes only."""


def spoken_units(text: str) -> list[SpokenUnit]:
    """Return the units of a text in a language that writes spaces, or in Chinese, or in a mixture of both."""
    return [unit for part in text.split() for unit in _units_of_part(part)]


def units_of_words(words: Iterable[str]) -> list[SpokenUnit]:
    """Return the units of a text that somebody else has cut into words."""
    return [unit for word in words if (unit := _unit(word)) is not None]


def repaired_times(times: Sequence[int]) -> list[int]:
    """Return times that never go back, changing as few as possible.

    The longest run of times in order is kept. One or two between them take the nearer neighbour's time, of three and
    more each its share of the gap. This is the rule of Qwen3-ForcedAligner's own code.

    Args:
        times: as the model gave them, in any unit, not negative.
    """
    kept = _longest_in_order(times)
    fixed = list(times)
    for before, after in zip([None, *kept], [*kept, None], strict=True):
        first = 0 if before is None else before + 1
        last = len(times) if after is None else after
        left = None if before is None else times[before]
        right = None if after is None else times[after]
        for place in range(first, last):
            fixed[place] = _between(place - first + 1, last - first, left, right)
    return fixed


def units_in_share(units: Sequence[SpokenUnit], share: float) -> int:
    """Return how many units, at least one, probably fill a share of the time that all of them take.

    Args:
        units: at least one.
        share: 0 to 1.
    """
    filled = np.cumsum([_weight(unit) for unit in units])
    return max(1, int(np.searchsorted(filled, share * filled[-1], side="right")))


def _units_of_part(part: str) -> list[SpokenUnit]:
    """Cut what stands between two spaces at its ideographs."""
    pieces = [""]
    for char in part:
        if is_ideograph(char):
            pieces += [char, ""]
        else:
            pieces[-1] += char
    return units_of_words(pieces)


def is_ideograph(char: str) -> bool:
    """Return whether a character is a unit of its own."""
    return any(ord(char) in block for block in _IDEOGRAPHS)


def _unit(word: str) -> SpokenUnit | None:
    kept = [place for place, char in enumerate(word) if _is_spoken(char)]
    if not kept:
        return None
    return SpokenUnit(_shown(word[kept[0] : kept[-1] + 1]), "".join(word[place] for place in kept))


def _shown(word: str) -> str:
    """Return a word without quotation marks, which look like apostrophes."""
    return word.strip("'") or word


def _is_spoken(char: str) -> bool:
    return char == "'" or unicodedata.category(char)[0] in "LN"


def _weight(unit: SpokenUnit) -> int:
    return sum(_IDEOGRAPH_WEIGHT if is_ideograph(char) else 1 for char in unit.spoken)


def _longest_in_order(times: Sequence[int]) -> list[int]:
    """Return the places of the longest run that never goes back; of several, the first to reach its length."""
    if not times:
        return []
    values = np.asarray(times)
    length = np.ones(len(values), np.int64)
    parent = np.full(len(values), -1)
    for place in range(1, len(values)):
        reachable = np.where(values[:place] <= values[place], length[:place], 0)
        best = int(reachable.argmax())
        if reachable[best]:
            length[place], parent[place] = reachable[best] + 1, best
    places = [int(length.argmax())]
    while parent[places[-1]] >= 0:
        places.append(int(parent[places[-1]]))
    return places[::-1]


def _between(number: int, count: int, left: int | None, right: int | None) -> int:
    """Return a time for the outlier `number` (from 1) of `count` that stand between two good times."""
    if left is None or right is None:
        known = right if left is None else left
        assert known is not None, "the longest run has at least one time"
        return known
    if count <= 2:
        return left if number <= count + 1 - number else right
    return int(left + (right - left) / (count + 1) * number)
