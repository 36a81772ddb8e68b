"""Errors of recognised text, counted by jiwer after a named normaliser.

A normaliser has a name because figures of two of them cannot be compared. Used by `offline.py`; knows no engine.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jiwer

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CONTRACTIONS = {"'re": " are", "'m": " am", "'ll": " will", "'ve": " have"}


def plain(text: str) -> str:
    """Return lower case without punctuation: NFKC, letters and digits, and apostrophes inside words."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").lower()
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text))


def english(text: str) -> str:
    """Return the same with digits as words, one by one, and contractions as two words."""
    text = plain(text)
    for short, full in _CONTRACTIONS.items():
        text = re.sub(rf"(?<=\w){short}\b", full, text)
    return " ".join(re.sub(r"[0-9]", lambda digit: f" {_DIGITS[int(digit[0])]} ", text).split())


NORMALISERS: Mapping[str, Callable[[str], str]] = {"plain": plain, "english": english}


@dataclass(frozen=True, slots=True)
class Score:
    """What is wrong with a text, or with several together."""

    words: int
    """In the reference."""
    word_errors: int
    chars: int
    """In the reference, without spaces."""
    char_errors: int

    @property
    def wer(self) -> float:
        """Word error rate; 0.1 is 10 %."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """Character error rate."""
        return self.char_errors / self.chars


def score(reference: str, heard: str, normalise: Callable[[str], str]) -> Score:
    """Count the errors of a text.

    Raises:
        ValueError: nothing is left of the reference.
    """
    said, found = normalise(reference), normalise(heard)
    if not said:
        raise ValueError("the reference has no words")
    words = jiwer.process_words(said, found)
    # Without spaces: scripts that have none, and compounds, are to be judged by what is heard.
    chars = jiwer.process_characters(said.replace(" ", ""), found.replace(" ", ""))
    return Score(len(said.split()), _errors(words), len(said.replace(" ", "")), _errors(chars))


def pooled(scores: Iterable[Score]) -> Score:
    """Return the score of all texts as one."""
    found = list(scores)
    return Score(
        sum(each.words for each in found),
        sum(each.word_errors for each in found),
        sum(each.chars for each in found),
        sum(each.char_errors for each in found),
    )


def _errors(output: "jiwer.WordOutput | jiwer.CharacterOutput") -> int:
    return output.substitutions + output.deletions + output.insertions
