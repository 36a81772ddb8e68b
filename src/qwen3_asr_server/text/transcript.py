"""The transcript of a recording: segments with their places on the file's clock.

What `runtime/offline.py` gives and every door for files renders; `subtitles.py` writes it in the usual formats.
Times are sample indices at 16 kHz, counted from the start of the file. Knows no audio and no wire format.
"""

from collections import Counter
from dataclasses import dataclass

from qwen3_asr_server.domain import Word
from qwen3_asr_server.text.join import join_texts


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


@dataclass(frozen=True, slots=True)
class Transcript:
    """All segments of a recording, by their starts; within a channel they do not overlap."""

    segments: tuple[Segment, ...]
    duration: int
    """Length of the recording in samples."""

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
    def words(self) -> tuple[Word, ...]:
        """The words of all segments, in their order."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def confidence(self) -> float | None:
        """Mean of the segments' confidences, weighted by their length; None if any has none."""
        known = [(s.confidence, s.end - s.start) for s in self.segments if s.confidence is not None]
        if not known or len(known) < len(self.segments):
            return None
        return sum(confidence * length for confidence, length in known) / sum(length for _, length in known)

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels in which something was said, in order."""
        return tuple(sorted({segment.channel for segment in self.segments}))

    def of_channel(self, channel: int) -> "Transcript":
        """Return the transcript of one channel."""
        return Transcript(tuple(s for s in self.segments if s.channel == channel), self.duration)
