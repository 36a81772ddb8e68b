"""What users say beforehand about their audio, rendered as the one text that the model takes: its context.

Every door has another word for it: `corpus.text`, `prompt`, `custom_vocabulary_word`, `vocabulary`, `initial_context`.
All of them become free text followed by a bare list of words; a sentence around the list makes recognition worse, and
a model that loses the audio recites it. What the model then makes of the context is its own business: a context makes
a spelling likelier, it forces none, and a long one costs time in each step. `guard.py` watches that it does not leak
into the transcript. Pure; knows no wire format and no engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from qwen3_asr_server.text.prompt import clean_context, looked_at
from qwen3_asr_server.text.units import split_units

CONTEXT_CHARS: Final = 10_000
"""Longest context, in code points: what the Qwen3-ASR engines give their model."""
PREVIOUS_CHARS: Final = 200
"""How much of the text before a piece is carried on into it."""
INITIAL_CHARS: Final = CONTEXT_CHARS // 2
"""How much of the end of a text that a user gives for the beginning of a recording."""
WORD_CHARS: Final = 100
"""Longest hotword, or way to say one; a longer one is a text, and is left out of the list."""


@dataclass(frozen=True, slots=True)
class Hotword:
    """A word that is likely to be said."""

    word: str
    sounds_like: Sequence[str] = ()
    """Other ways to write down how it sounds."""
    weight: float = 0.0
    """Where not all find room, the heaviest come first; of equals, the first."""


def render_context(texts: Iterable[str] = (), hotwords: Iterable[Hotword] = (), max_chars: int = CONTEXT_CHARS) -> str:
    """Return the context for all that a user has given.

    The texts come first, then a line with the hotwords: `word, other word (how it sounds)`. These are kept whole, and
    the texts are cut where there is too little room for both.

    Args:
        texts: free texts, in order; may be anything.
        hotwords: in any order; each stands once.
        max_chars: longest result, in code points.
    """
    listed = _listed(hotwords, max_chars)
    text = "\n".join(filter(None, (clean_context(text, max_chars) for text in texts)))
    return _above(text, listed, max_chars)


def with_previous(context: str, previous: str, max_chars: int = CONTEXT_CHARS, *, carried: int = PREVIOUS_CHARS) -> str:
    """Return the context of a piece that goes on where a text ended.

    Where there is too little room for both, the last line of `context` is kept before the others: it has the hotwords,
    if there are any.

    Args:
        context: what the user gave, see `render_context`.
        previous: the text before the piece.
        max_chars: longest result, in code points.
        carried: how much of the end of `previous` stands in it, in code points.
    """
    below = last_chars(previous, min(carried, max_chars))
    room = max_chars - len(below) - 1
    if below and len(context) > room:
        text, _, last_line = context.rpartition("\n")
        context = _above(text, clean_context(last_line, room), room)
    return _above(context, below, max_chars)


def last_chars(text: str, max_chars: int = PREVIOUS_CHARS) -> str:
    """Return the end of a text, at most so many code points of it, without a word that was cut in two."""
    text = text[-looked_at(max_chars) :]
    text = clean_context(text, len(text))
    if len(text) <= max_chars:
        return text
    cut = len(text) - max_chars
    first = next((unit.end - len(unit.core) for unit in split_units(text) if unit.end - len(unit.core) >= cut), cut)
    return text[first:].strip()


def _listed(hotwords: Iterable[Hotword], max_chars: int) -> str:
    """Return as many hotwords as find room, the heaviest first."""
    entries: list[str] = []
    known: set[str] = set()
    room = max_chars
    for hotword in sorted(hotwords, key=lambda hotword: -hotword.weight):
        entry = _entry(hotword)
        needed = len(entry) + (len(_SEPARATOR) if entries else 0)
        if not entry or entry.casefold() in known or needed > room:
            continue
        known.add(entry.casefold())
        entries.append(entry)
        room -= needed
    return _SEPARATOR.join(entries)


def _entry(hotword: Hotword) -> str:
    word = _word(hotword.word)
    sounds = ", ".join(filter(None, map(_word, hotword.sounds_like)))
    return f"{word} ({sounds})" if word and sounds else word


def _word(text: str) -> str:
    cleaned = " ".join(clean_context(text, WORD_CHARS + 1).split())
    return cleaned if len(cleaned) <= WORD_CHARS else ""


def _above(text: str, below: str, max_chars: int) -> str:
    """Return two texts, one a line; the lower one is kept whole."""
    if not below:
        return clean_context(text, max_chars)
    return "\n".join(filter(None, (clean_context(text, max_chars - len(below) - 1), below)))


_SEPARATOR: Final = ", "
