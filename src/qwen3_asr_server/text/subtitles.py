"""A transcript as subtitles and as OpenAI's JSON: pure functions from a `Transcript` to text or plain values.

    segment ──▶ units: a word, or a character of an unspaced script, each with its times
            ──▶ cues:  as many units as two lines and seven seconds hold, ended after punctuation where possible
            ──▶ lines: about equally long

Times of words are used where there are any; else a segment's time is spread over its text by width. Knows no HTTP;
the doors for files choose among these.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from math import log
from typing import Any, Final

from qwen3_asr_server.domain import SAMPLE_RATE, Word, ms_of_samples, samples_of_ms
from qwen3_asr_server.text.languages import find
from qwen3_asr_server.text.transcript import Segment, Transcript
from qwen3_asr_server.text.units import split_units

LINE_COLUMNS: Final = 42
"""Widest line, in columns; a full-width character takes two. The usual limit of broadcasters."""
CUE_LINES: Final = 2
CUE_SAMPLES: Final = 7 * SAMPLE_RATE
"""Longest cue."""
SHORTEST_CUE_SAMPLES: Final = SAMPLE_RATE
"""A shorter one is shown longer, until the next one begins."""
GAP_SAMPLES: Final = samples_of_ms(1500)
"""Silence between two words that ends a cue."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown at one time."""

    lines: tuple[str, ...]
    start: int
    """First sample on the file's clock."""
    end: int
    """One past the last; after `start`."""
    channel: int = 0


def as_text(transcript: Transcript) -> str:
    """Return all that was said, and a line break.

    Where several channels were kept apart, each segment is a line that begins with its channel's number in brackets.
    """
    if len(transcript.channels) > 1 and transcript.segments:
        return "".join(f"[{segment.channel}] {segment.text}\n" for segment in transcript.segments)
    return transcript.text + "\n"


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles. Where several channels were kept apart, cues begin with their numbers in brackets."""
    several = len(transcript.channels) > 1
    blocks = []
    for number, cue in enumerate(cues_of(transcript), 1):
        text = "\n".join(cue.lines).replace("-->", "->")
        mark = f"[{cue.channel}] " if several else ""
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{mark}{text}\n")
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles. Where several channels were kept apart, each is a voice of its own."""
    several = len(transcript.channels) > 1
    blocks = ["WEBVTT\n"]
    for cue in cues_of(transcript):
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        voice = f"<v Channel {cue.channel}>" if several else ""
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{voice}{text}\n")
    return "\n".join(blocks)


def as_json(transcript: Transcript, *, channels: bool = False) -> dict[str, Any]:
    """Return the text alone, as OpenAI's `json`; with the text of each channel too, if asked."""
    return {"text": transcript.text} | (_by_channel(transcript) if channels else {}) | truncation_of(transcript)


def as_verbose_json(
    transcript: Transcript, *, words: bool = False, segments: bool = True, channels: bool = False
) -> dict[str, Any]:
    """Return OpenAI's `verbose_json`, times in seconds.

    Args:
        transcript: what to write.
        words: with the words, where their times are known.
        segments: with the segments.
        channels: with the channel of each segment and word and the text of each channel, which OpenAI does not have.
    """
    language = find(transcript.language or "")
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": language.name.lower() if language else "",
        "duration": seconds_of(transcript.duration),
        "text": transcript.text,
    }
    if words:
        answer["words"] = [
            {"word": word.text, "start": seconds_of(word.start), "end": seconds_of(word.end)}
            | ({"channel": channel} if channels else {})
            for channel, word in transcript.words
        ]
    if segments:
        answer["segments"] = [
            _verbose(number, segment) | ({"channel": segment.channel} if channels else {})
            for number, segment in enumerate(transcript.segments)
        ]
    return answer | (_by_channel(transcript) if channels else {}) | truncation_of(transcript)


def truncation_of(transcript: Transcript) -> dict[str, bool]:
    """Return what every JSON says of a file that ended before it should; nothing of others."""
    return {"audio_truncated": True} if transcript.cut_short else {}


def seconds_of(samples: int) -> float:
    """Return a time in seconds, to the millisecond."""
    return ms_of_samples(samples) / 1000


def cues_of(transcript: Transcript) -> list[Cue]:
    """Return the cues of a transcript by their starts; those of a channel do not overlap."""
    cues: list[Cue] = []
    for channel in transcript.channels:
        shown: list[Cue] = []
        for segment in transcript.segments:
            if segment.channel == channel:
                shown += _cues(segment)
        cues += _without_overlap(shown)
    return sorted(cues, key=lambda cue: (cue.start, cue.channel))


@dataclass(frozen=True, slots=True)
class _Unit:
    """The smallest thing that is not broken, punctuation around it included."""

    text: str
    """With the space that follows it."""
    start: int
    end: int

    @property
    def weight(self) -> int:
        """How good it is to end a cue after it."""
        last = self.text.rstrip(_CLOSING)[-1:]
        return 2 if last in _SENTENCE_ENDS else int(last in _CLAUSE_ENDS)


_CLOSING: Final = " \t\n\"'”’)]}」』）】》"
_SENTENCE_ENDS: Final = frozenset(".!?…。！？")
_CLAUSE_ENDS: Final = frozenset(",;:、，；：")


def _cues(segment: Segment) -> Iterator[Cue]:
    units = _units(segment)
    while units:
        count = _most_that_fit(units)
        if count < len(units) and units[count].start - units[count - 1].end < GAP_SAMPLES:
            # Rather a shorter cue that ends with a clause; of equals the last, and none below half.
            count = max(range((count + 1) // 2, count + 1), key=lambda n: (units[n - 1].weight, n)) or 1
        shown, units = units[:count], units[count:]
        yield Cue(_lines(shown), shown[0].start, max(unit.end for unit in shown), segment.channel)


def _most_that_fit(units: Sequence[_Unit]) -> int:
    """Return how many units one cue holds, at least one."""
    for count in range(1, len(units)):
        longer = units[: count + 1]
        too_long = longer[-1].end - longer[0].start > CUE_SAMPLES
        pause = longer[-1].start - longer[-2].end >= GAP_SAMPLES
        if too_long or pause or len(_filled(longer)) > CUE_LINES:
            return count
    return len(units)


def _lines(units: Sequence[_Unit]) -> tuple[str, ...]:
    """Return the lines of a cue, two about equally long where one is not enough."""
    filled = _filled(units)
    if len(filled) != CUE_LINES:
        return filled
    halves = [(_text(units[:n]), _text(units[n:])) for n in range(1, len(units))]
    fitting = [pair for pair in halves if max(map(_columns, pair)) <= LINE_COLUMNS]
    return min(fitting or [filled], key=lambda pair: max(map(_columns, pair)))


def _filled(units: Sequence[_Unit]) -> tuple[str, ...]:
    """Return the lines that come of filling one after the other."""
    lines = [""]
    for unit in units:
        if lines[-1] and _columns((lines[-1] + unit.text).rstrip()) > LINE_COLUMNS:
            lines.append("")
        lines[-1] += unit.text
    return tuple(line.strip() for line in lines)


def _text(units: Sequence[_Unit]) -> str:
    return "".join(unit.text for unit in units).strip()


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _units(segment: Segment) -> list[_Unit]:
    text = " ".join(segment.text.split())
    bounds = [0, *_breaks(text), len(text)]
    pieces = [(first, last) for first, last in pairwise(bounds) if first < last]
    times = _word_times(text, segment, pieces) if segment.words else _spread(text, segment, pieces)
    return [_Unit(text[first:last], *time) for (first, last), time in zip(pieces, times, strict=True)]


def _breaks(text: str) -> Iterator[int]:
    """Yield where a line may be broken: before each word, and before what opens it."""
    for before, unit in pairwise(split_units(text)):
        gap = text[before.end : unit.end - len(unit.core)]
        opened = len(gap) - len(gap.rstrip("([{\"'“‘「『（【《¿¡"))
        yield before.end + (gap.rindex(" ") + 1 if " " in gap else len(gap) - opened)


def _spread(text: str, segment: Segment, pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Share the segment's time among its units by their width."""
    widths = [_columns(text[first:last]) for first, last in pieces]
    total, length = max(1, sum(widths)), segment.end - segment.start
    ends = [segment.start + length * sum(widths[: n + 1]) // total for n in range(len(widths))]
    return list(zip([segment.start, *ends], ends, strict=False))


def _word_times(text: str, segment: Segment, pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the times of the words that stand in each unit; a unit without any has the time of the one before."""
    placed = list(_placed(text, segment.words))
    times: list[tuple[int, int]] = []
    last = segment.start
    for first, stop in pieces:
        inside = [word for at, word in placed if first <= at < stop]
        start = max(last, min((word.start for word in inside), default=last))
        last = max(start, max((word.end for word in inside), default=start))
        times.append((start, last))
    return times


def _placed(text: str, words: Sequence[Word]) -> Iterator[tuple[int, Word]]:
    """Yield the words with their places in the text; those that cannot be found are left out."""
    # Some letters are two in lower case, which would move all that follows.
    fold = str.lower if len(text.lower()) == len(text) else str
    folded, at = fold(text), 0
    for word in words:
        found = folded.find(fold(word.text), at)
        if found >= 0:
            yield found, word
            at = found + len(word.text)


def _without_overlap(cues: Sequence[Cue]) -> Iterator[Cue]:
    """Yield the cues of one channel, each over before the next begins and none too short to be read if possible."""
    for cue, following in zip_longest(cues, cues[1:]):
        end = max(cue.end, cue.start + SHORTEST_CUE_SAMPLES)
        limit = end if following is None else max(following.start, cue.start + 1)
        yield replace(cue, end=min(end, limit))


def _clock(samples: int, point: str) -> str:
    seconds, milliseconds = divmod(ms_of_samples(samples), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{milliseconds:03}"


def _by_channel(transcript: Transcript) -> dict[str, Any]:
    texts = {channel: transcript.of_channel(channel).text for channel in transcript.channels}
    return {"channels": [{"channel": channel, "text": text} for channel, text in texts.items()]}


def _verbose(number: int, segment: Segment) -> dict[str, Any]:
    """Return a segment as OpenAI writes it; decoding is greedy, and what Whisper alone knows is zero."""
    return {
        "id": number,
        "seek": 0,
        "start": seconds_of(segment.start),
        "end": seconds_of(segment.end),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": log(segment.confidence) if segment.confidence else 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }
