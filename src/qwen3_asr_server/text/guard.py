"""Tell from a finished answer that something went wrong, before it is sent.

A recogniser that loses the audio repeats itself, recites the context it was given, writes text on silence or lets
its own tags through. Each check has a threshold beyond what people say, given beside it: a false alarm costs one
more decode, a loop on the screen costs trust. Every check is linear in its input. Pure; knows no engine. Engines
call `judge` for finals, decode once more without prefix and context if it finds something, and count it.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.text.prompt import CONTROL_TOKEN
from qwen3_asr_server.text.units import is_unspaced


class Suspicion(Enum):
    """What is wrong with an answer. The values are labels for metrics."""

    RAW_TAGS = "raw_tags"
    LOOP = "loop"
    TEXT_ON_SILENCE = "text_on_silence"
    CONTEXT_LEAK = "context_leak"
    TOO_FAST = "too_fast"
    HIT_LIMIT = "hit_limit"


@dataclass(frozen=True, slots=True)
class Loop:
    """A stretch that says the same thing again and again. Indices into what was searched."""

    start: int
    first_end: int
    """One past the first time: `[:first_end] + [end:]` is the same without the repetition."""
    end: int
    count: int
    """How often it stands there, whole."""


def judge(
    text: str, ids: Sequence[int], context: str, speech_s: float | None, *, hit_limit: bool = False
) -> Suspicion | None:
    """Return the gravest thing that is wrong with an answer, or None.

    Args:
        text: the answer after its header, as the model wrote it: `Parsed.body`.
        ids: its token ids, without end-of-text.
        context: what the model was given as context.
        speech_s: seconds of speech in the audio; None if nobody knows, then rate and silence are not looked at.
        hit_limit: the model stopped because it was not allowed more tokens.
    """
    if has_raw_tags(text):
        return Suspicion.RAW_TAGS
    if find_loop(text) or find_loop(ids):
        return Suspicion.LOOP
    if speech_s is not None and speech_s < SHORTEST_SPEECH_S and _words(text):
        return Suspicion.TEXT_ON_SILENCE
    if leaks_context(text, context):
        return Suspicion.CONTEXT_LEAK
    if speech_s is not None and _syllables(text) > SYLLABLES_PER_S * speech_s + SPARE_SYLLABLES:
        return Suspicion.TOO_FAST
    return Suspicion.HIT_LIMIT if hit_limit else None


SHORTEST_SPEECH_S: Final = 0.1
"""No word is shorter; a detector that finds less found a click."""

SYLLABLES_PER_S: Final = 16
"""Nobody speaks faster: quick talkers reach 8 to 10, in short bursts 12."""

SPARE_SYLLABLES: Final = 8
"""Short speech is measured badly, and `1000000` is seven digits and four syllables."""


def has_raw_tags(text: str) -> bool:
    """Return whether control tokens or pieces of them stand in the text."""
    return bool(_TAG.search(text) or CONTROL_TOKEN.search(text))


def find_loop(sequence: str | Sequence[int]) -> Loop | None:
    """Return the first loop found in a text or in token ids, or None.

    A pattern of 1 to 20 characters or ids is a loop if it stands 20 times in a row, anywhere. A pattern of any
    length is one at the end, where a running loop would be, if it stands `3 + 17 / words` times, at most 20: two
    words 12 times, four 8 times, nine 5 times, a sentence of seventeen 4 times. A word is a word, a character of
    an unspaced script, or three ids. People say less: "no" some ten times, a chant of four words five times.
    """
    if not isinstance(sequence, str):
        return _anywhere(np.asarray(sequence, np.int64)) or _at_end(sequence, _IDS_PER_WORD)
    anywhere = _anywhere(np.frombuffer(sequence.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64))
    if anywhere:
        return anywhere
    words = _words(sequence)
    loop = _at_end([word.core for word in words], 1)
    return loop and Loop(words[loop.start].start, words[loop.first_end - 1].end, words[-1].end, loop.count)


def leaks_context(text: str, context: str) -> bool:
    """Return whether the text is mostly a recitation of the context, case and punctuation aside.

    Two things count: a run of at least 12 words that makes up 60 % of the text, and a run through three or more
    entries of a list that makes up 80 % of it, if it has at least 6 words or is the whole context. Two characters
    of an unspaced script count as a word. A list may be recited with what stands in brackets behind its entries,
    without it, or that alone. A hotword, a name or a few of them are no leak, even said alone.
    """
    spoken = _words(text)
    return bool(spoken) and any(_recites(spoken, reading) for reading in _readings(context))


_IN_BRACKETS: Final = re.compile(r"\(([^()]*)\)")
_TAG: Final = re.compile(r"<\||\|>|asr_text")
_LONGEST_ANYWHERE: Final = 20
_TIMES_ANYWHERE: Final = 20
_IDS_PER_WORD: Final = 3
"""Rare words and characters are cut into so many, so that a laugh of ten characters may be thirty ids."""
_FEWEST_AT_END: Final = 4
_PROSE_SHARE: Final = 0.6
_PROSE_WORDS: Final = 12
_LIST_SHARE: Final = 0.8
_LIST_WORDS: Final = 6
_LIST_ENTRIES: Final = 3


def _anywhere(codes: npt.NDArray[np.int64]) -> Loop | None:
    """Find a short pattern that stands often anywhere; of several, the shortest."""
    for period in range(1, min(_LONGEST_ANYWHERE, len(codes) // _TIMES_ANYWHERE) + 1):
        compared = len(codes) - period
        breaks = np.flatnonzero(codes[period:] != codes[:compared])
        edges = np.concatenate(([-1], breaks, [compared]))
        runs = np.diff(edges) - 1
        found = np.flatnonzero(runs >= period * (_TIMES_ANYWHERE - 1))
        if len(found):
            start, length = int(edges[found[0]]) + 1, int(runs[found[0]]) + period
            return Loop(start, start + period, start + length, length // period)
    return None


def _at_end(items: Sequence[object], per_word: int) -> Loop | None:
    """Find a pattern that stands too often at the end; of several, the shortest."""
    total = len(items)
    shared = _shared_beginnings(items[::-1])
    for period in range(1, total // _FEWEST_AT_END + 1):
        length = shared[period] + period
        allowed = _FEWEST_AT_END - 1 + math.ceil(17 * per_word / period)
        if length // period >= min(allowed, _TIMES_ANYWHERE):
            start = total - length
            return Loop(start, start + period, total, length // period)
    return None


def _runs_through_middle(spoken: Sequence[str], given: Sequence[str]) -> list[tuple[int, int]]:
    """Return where in `given` the longest runs stand that hold the middle of `spoken`.

    A run that makes up more than half of something holds its middle.
    """
    middle = len(spoken) // 2
    after = _shared_with(spoken[middle:], given)
    before = _shared_with(spoken[:middle][::-1], given[::-1])[::-1]
    return [(at - (before[at - 1] if at else 0), at + after[at]) for at in range(len(given)) if after[at]]


def _shared_with(pattern: Sequence[str], items: Sequence[str]) -> list[int]:
    """Return for each place in `items` how much of the beginning of `pattern` stands there."""
    return _shared_beginnings([*pattern, None, *items])[len(pattern) + 1 :]


def _shared_beginnings(items: Sequence[object]) -> list[int]:
    """Return for each place how long what begins there goes on like the whole begins (Z-function, linear)."""
    total = len(items)
    shared = [0] * total
    left = right = 0
    for place in range(1, total):
        length = min(right - place, shared[place - left]) if place < right else 0
        while place + length < total and items[length] == items[place + length]:
            length += 1
        shared[place] = length
        if place + length > right:
            left, right = place, place + length
    return shared


@dataclass(frozen=True, slots=True)
class _Word:
    """A word, or a character of an unspaced script, with its place in the text."""

    core: str
    """Case-folded."""
    start: int
    end: int
    weight: float
    """1 for a word, ½ for a character of an unspaced script."""
    opens_entry: bool
    """What stands before it separates: punctuation, a line break, between unspaced characters also a space."""


def _words(text: str) -> list[_Word]:
    """Split at everything but letters, digits, marks and apostrophes inside words."""
    words: list[_Word] = []
    end = 0
    for match in _WORD.finditer("".join(map(_kind, text))):
        unspaced = match.group()[0] == "u"
        gap = text[end : match.start()]
        opens = not words or bool(_SEPARATOR.search(gap)) or (unspaced and bool(gap))
        end = match.end()
        words.append(_Word(text[match.start() : end].casefold(), match.start(), end, 0.5 if unspaced else 1.0, opens))
    return words


@lru_cache(maxsize=32)
def _readings(context: str) -> tuple[Sequence[_Word], ...]:
    """Return the words of a context, and where it has words with their sounds in brackets, also each of these alone.

    Kept for a while: all finals of a session ask for the same, and a long context takes tens of milliseconds.
    """
    sounds = _IN_BRACKETS.findall(context)
    readings = [context, _IN_BRACKETS.sub("", context), ", ".join(sounds)] if sounds else [context]
    return tuple(_words(reading) for reading in readings)


def _recites(spoken: Sequence[_Word], given: Sequence[_Word]) -> bool:
    """Return whether what was said is mostly a run through what was given."""
    weights = list(accumulate((word.weight for word in given), initial=0.0))
    entries = list(accumulate(word.opens_entry for word in given))
    for start, end in _runs_through_middle([w.core for w in spoken], [w.core for w in given]):
        share = (end - start) / len(spoken)
        words = weights[end] - weights[start]
        if share >= _PROSE_SHARE and words >= _PROSE_WORDS:
            return True
        is_list = entries[end - 1] - entries[start] + 1 >= _LIST_ENTRIES and share >= _LIST_SHARE
        if is_list and (words >= _LIST_WORDS or end - start == len(given)):
            return True
    return False


_WORD: Final = re.compile(r"um*|[wm]+(?:i[wm]+)*")
_SEPARATOR: Final = re.compile(r"[\n\t,;|!?•、，；。！？]|[.:/]\s|\s[-–—/]\s")


def _kind(char: str) -> str:
    """Return the class of a character.

    `u` letter of an unspaced script, `w` other letter or digit, `m` mark on a letter, `i` apostrophe, `-` the rest.
    """
    match unicodedata.category(char)[0]:
        case "L" | "N":
            return "u" if is_unspaced(char) else "w"
        case "M":
            return "m"
    return "i" if char in "'’" else "-"


def _syllables(text: str) -> float:
    """Return about how many syllables a text has: one for an East Asian character or a digit, ⅓ for other letters."""
    return sum(
        1.0 if char.isdigit() or unicodedata.east_asian_width(char) in "WF" else 1 / 3
        for char in text
        if unicodedata.category(char)[0] in "LN"
    )
