"""Words that a user does not want to read: hidden behind stars, or left out.

A word counts where it stands by itself; in scripts without spaces, wherever it stands. Case does not matter. Texts keep
their length until they are finished, so that the places of their words stay known. Pure; knows of wire formats only the
vendor's field for such words, which two of its protocols share.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.domain import Word
from qwen3_asr_server.errors import InvalidValue
from qwen3_asr_server.text.units import is_unspaced, split_units

MAX_SPECIAL_WORDS: Final = 1000
"""Of each kind."""

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


def special_words_of(value: object, param: str) -> SpecialWords:
    """Return the words in the vendor's `special_word_filter`; its own list of words is not known here.

    Args:
        value: an object, or a string with JSON in it; None and "" are no words.
        param: the field, as the client named it.

    Raises:
        InvalidValue: it is neither, or over a limit.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise InvalidValue(f"{param} is not valid JSON.", param=param) from None
    if value is None:
        return SpecialWords()
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{param} is not an object.", param=param)
    return SpecialWords(_listed(value, "filter_with_signed", param), _listed(value, "filter_with_empty", param))


def timed_words(text: str, words: Sequence[Word], special: SpecialWords) -> Iterator[tuple[Word, str, str]]:
    """Yield each word as it is to be read, and the punctuation behind it; words that are left out are missing.

    Args:
        text: the transcript of the words, as it was recognised.
        words: in order. Where they cannot be found in the text, they come as they are, without punctuation.
        special: what is to be hidden or left out.
    """
    units = split_units(text)
    marked = special.marked(text)
    if len(units) != len(words):
        texts = [(special.marked(word.text), "") for word in words]
    else:
        begins = [unit.end - len(unit.core) for unit in units]
        texts = [
            (marked[begin : unit.end], marked[unit.end : following])
            for unit, begin, following in zip(units, begins, [*begins, len(marked)][1:], strict=True)
        ]
    for word, (core, punctuation) in zip(words, texts, strict=True):
        if shown := finished(core):
            yield word, shown, finished(punctuation).strip()


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


def _listed(fields: Mapping[str, object], name: str, param: str) -> tuple[str, ...]:
    entry = {} if fields.get(name) is None else fields[name]
    words = entry.get("word_list") or [] if isinstance(entry, Mapping) else None
    if not isinstance(words, list) or len(words) > MAX_SPECIAL_WORDS or not all(map(_is_text, words)):
        message = f"{name}.word_list is a list of at most {MAX_SPECIAL_WORDS} words."
        raise InvalidValue(message, param=param)
    return tuple(words)


def _is_text(value: object) -> bool:
    """Tell whether a value can be stored: JSON can also say halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
