"""Tell which part of a growing transcript will not change: the stable prefix of one piece.

Local agreement with an age limit: a unit is confirmed when two successive hypotheses agree on it at its
place and its audio lies far enough back. Confirmed text never changes, whatever later hypotheses say.
Knows no engine, session or clock; the session machine feeds it one hypothesis after another.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_asr_server.domain import SAMPLE_RATE, Word
from qwen3_asr_server.text.join import joint
from qwen3_asr_server.text.units import Unit, split_units


class StablePrefix:
    """The confirmed text of one piece.

    Args:
        stable_age_samples: how old audio must be before its text is confirmed, in samples at 16 kHz, ≥ 0.
    """

    def __init__(self, stable_age_samples: int = 3 * SAMPLE_RATE // 2) -> None:
        self._age = stable_age_samples
        self._confirmed = ""
        self._seen: list[_Seen] = []
        self.contradictions = 0
        """Hypotheses so far that did not begin with the text confirmed before them."""

    @property
    def confirmed(self) -> str:
        """The text that will not change any more, without trailing separators."""
        return self._confirmed

    def update(self, text: str, words: Sequence[Word], upto: int) -> str:
        """Take the next hypothesis in and return the confirmed text.

        Args:
            text: the whole hypothesis of the piece.
            words: its words with times, or empty. As far as they follow the text their times decide the age
                of a unit; elsewhere a unit is as old as the hypothesis that first had it.
            upto: end of the audio heard, in samples on the clock of the words.

        Returns:
            A beginning of `text` or, if that contradicts what was confirmed, the text confirmed before.
            It ends with a word: punctuation is confirmed with the word after it.
        """
        units = split_units(text)
        self._seen = [
            self._seen[i]
            if i < len(self._seen) and self._seen[i].text == text[unit.start : unit.end]
            else _Seen(text[unit.start : unit.end], upto)
            for i, unit in enumerate(units)
        ]
        if not text.startswith(self._confirmed):
            self.contradictions += 1
            return self._confirmed
        ends = _ends(text, units, words)
        for unit, seen, end in zip(units, self._seen, ends, strict=True):
            agreed = seen.upto < upto
            if not agreed or (seen.upto if end is None else end) > upto - self._age:
                break
            if unit.end > len(self._confirmed):
                self._confirmed = text[: unit.end]
        return self._confirmed

    def tail(self, text: str) -> str:
        """Return what to show after the confirmed text, so that both together read like `text`."""
        return tail_after(self._confirmed, text)


def tail_after(confirmed: str, text: str) -> str:
    """Return what of `text` to show after a confirmed text.

    Where `text` contradicts the confirmed words, as many of its words are left out as are confirmed.
    """
    if text.startswith(confirmed):
        return text[len(confirmed) :]
    units = split_units(text)
    count = len(split_units(confirmed))
    if count > len(units):
        return ""
    rest = text[units[count - 1].end :] if count else text
    return joint(confirmed, rest) + rest


@dataclass(frozen=True, slots=True)
class _Seen:
    """A unit with the separators before it, and the `upto` of the first hypothesis in the row that had it."""

    text: str
    upto: int


def _ends(text: str, units: Sequence[Unit], words: Sequence[Word]) -> list[int | None]:
    """Return where each unit's audio ends; None from where on the words no longer follow the text."""
    places: list[int] = []
    cursor = 0
    for word in words:
        found = text.find(word.text, cursor)
        if found < 0 or split_units(text[cursor:found]):
            break
        cursor = found + len(word.text)
        places.append(cursor)
    indices = (bisect_left(places, unit.end) for unit in units)
    return [words[index].end if index < len(places) else None for index in indices]
