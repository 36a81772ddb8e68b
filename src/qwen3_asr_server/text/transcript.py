"""The transcript of a recording: segments with their places on the file's clock.

What `runtime/offline.py` gives and every door for files renders; `subtitles.py` writes it in the usual formats.
Times are sample indices at 16 kHz, counted from the start of the file. Knows no audio and no wire format.
"""

from collections import Counter
from dataclasses import dataclass, replace

from qwen3_asr_server.domain import Word
from qwen3_asr_server.text.join import join_texts, merge_overlap
from qwen3_asr_server.text.units import split_units


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said between two pauses."""

    text: str
    """Without outer white space, never empty."""
    start: int
    """First sample, lead-in included."""
    end: int
    """One past the last sample; after `start`."""
    channel: int = 0
    """From 0; always 0 unless the channels were kept apart."""
    language: str | None = None
    """Wire code, None if unknown."""
    words: tuple[Word, ...] = ()
    """On the file's clock, in order and within the segment; empty where nobody has placed them."""
    confidence: float | None = None
    """Probability in [0, 1], where the engine has one."""

    def bounded(self, floor: int, ceiling: int) -> "Segment":
        """Return it with times in order from `floor` to `ceiling`, the later one, and wide enough for its words."""
        words: list[Word] = []
        last = floor
        for word in self.words:
            start = max(last, min(word.start, ceiling))
            last = max(start, min(word.end, ceiling))
            words.append(replace(word, start=start, end=last))
        start = max(floor, min([self.start, *(word.start for word in words[:1])]))
        return replace(self, start=start, end=max(start + 1, self.end, last), words=tuple(words))


@dataclass(frozen=True, slots=True)
class Transcript:
    """All segments of a recording, by their starts; within a channel they do not overlap."""

    segments: tuple[Segment, ...]
    duration: int
    """Length of the recording in samples."""
    cut_short: bool = False
    """The file ended before it should, as after a broken download; what it had is here."""
    channels: tuple[int, ...] = (0,)
    """Those that were kept apart, in order, also one in which nobody spoke; 0 alone for all of them mixed."""

    @property
    def text(self) -> str:
        """Everything that was said, in the order of time whatever the channel."""
        return join_texts([segment.text for segment in self.segments])

    @property
    def language(self) -> str | None:
        """The language that was spoken longest; None if nothing was said, or nobody knows."""
        spoken: Counter[str] = Counter()
        for segment in self.segments:
            if segment.language is not None:
                spoken[segment.language] += segment.end - segment.start
        return max(spoken, key=spoken.__getitem__, default=None)

    @property
    def words(self) -> tuple[tuple[int, Word], ...]:
        """The words of all segments, each behind its channel, by their starts."""
        words = [(segment.channel, word) for segment in self.segments for word in segment.words]
        return tuple(sorted(words, key=lambda placed: placed[1].start))

    @property
    def confidence(self) -> float | None:
        """Mean of the segments' confidences, weighted by their length; None if any has none."""
        known = [(s.confidence, s.end - s.start) for s in self.segments if s.confidence is not None]
        if not known or len(known) < len(self.segments):
            return None
        return sum(confidence * length for confidence, length in known) / sum(length for _, length in known)

    def of_channel(self, channel: int) -> "Transcript":
        """Return the transcript of one channel."""
        return replace(self, segments=tuple(s for s in self.segments if s.channel == channel), channels=(channel,))


def merge_overlapping(left: Segment, right: Segment) -> tuple[Segment, Segment]:
    """Take out what two neighbours both heard, after a cut in speech; words stay together with their text.

    Args:
        left: what was heard before the cut.
        right: what was heard after it, beginning a little before the cut.
    """
    left_text, right_text = merge_overlap(left.text, right.text)
    kept = _still_said(left.words, left.text, left_text, from_end=False)
    new = _still_said(right.words, right.text, right_text, from_end=True)
    if kept is None or new is None:
        kept, new = left.words, tuple(word for word in right.words if (word.start + word.end) // 2 >= left.end)
    # A word that only the right one has may begin before the cut: the left one ends where that does.
    end = min([left.end, *(max(word.start, left.start + 1) for word in new[:1])])
    return replace(left, end=end, text=left_text, words=kept), replace(right, text=right_text, words=new)


def _still_said(words: tuple[Word, ...], before: str, after: str, *, from_end: bool) -> tuple[Word, ...] | None:
    """Return the words of a text that was shortened; None if they do not correspond to its units one by one."""
    count = len(split_units(after))
    if words and len(words) != len(split_units(before)):
        return None
    return words[len(words) - count :] if from_end else words[:count]
