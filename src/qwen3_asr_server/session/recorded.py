"""One channel of a recording: its pieces on their way from the cut to the segment.

    cut ──▶ due: its context and language hint are known ──▶ complete: text and words are known ──▶ taken, in order

A piece may be decoded as soon as it is cut, unless what is decoded depends on the texts before it: when those are to
be its context, or when it is so short that the engine may hold it against the language of the recording. So a segment
is a function of the audio and the options, and never of the order of answers. Knows no engine, no files and no clock;
`runtime/offline.py` is its caller.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qwen3_asr_server.domain import Hypothesis, Samples, StreamOptions, TurnDetection, Word, samples_of_ms
from qwen3_asr_server.session.cuts import Cut, PieceCutter
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.text.context import INITIAL_CHARS, render_context, with_previous
from qwen3_asr_server.text.languages import ESTABLISHED_BY, established
from qwen3_asr_server.text.transcript import Segment, merge_overlapping

SHORT_PIECE_MS: Final = 2000
"""A shorter piece, with its lead-in, waits for the language of those before it: an engine is sure of the language of a
second of speech (`text.languages.INERTIA`)."""


@dataclass(frozen=True, slots=True)
class TranscribeOptions:
    """What is wanted of a recording, free of any wire format."""

    language: str | None = None
    """Forced, wire code; None detects it."""
    context: str = ""
    """Given to the engine with every piece, see `text.context.render_context`."""
    initial_context: str = ""
    """Text before the first piece, whose context alone it enters."""
    use_previous_context: bool = False
    """Carry the end of each piece's text into the next one; pieces are then decoded one after the other."""
    words: bool = False
    """With the times of words, where somebody can place them."""
    turn_detection: TurnDetection | None = TurnDetection()
    """How utterances end; None cuts as for an item of Manual mode, at long pauses or when a piece gets too long."""


@dataclass(slots=True, eq=False)
class RecordedPiece:
    """A piece between its cut and its segment."""

    cut: Cut
    channel: int
    number: int | None = None
    """Its name at the scheduler, once it is due."""
    failures: int = 0
    hypothesis: Hypothesis | None = None
    words: Sequence[Word] = ()
    """Relative to its start."""
    complete: bool = False

    @property
    def text(self) -> str:
        """What was said in it, as far as it is known."""
        return self.hypothesis.text if self.hypothesis is not None else ""

    def settle(self, words: Sequence[Word]) -> None:
        """Note that all is known; the audio is not needed any more."""
        self.words, self.complete = words, True
        self.cut = self.cut.without_audio()


class RecordedTrack:
    """The pieces of one channel that have not been told.

    Args:
        channel: its number, also an attribute.
        options: what is wanted.
        session: the rules of live sessions.

    Attributes:
        pieces: in order.
    """

    def __init__(self, channel: int, options: TranscribeOptions, session: SessionOptions) -> None:
        self.channel = channel
        self._options = options
        self._evidence_samples = samples_of_ms(session.language_evidence_s * 1000)
        self._cutter = PieceCutter(options.turn_detection, session)
        self._previous = ""
        self._languages: deque[str] = deque(maxlen=ESTABLISHED_BY)
        self._rest: Segment | None = None
        self._floor = 0
        self.pieces: deque[RecordedPiece] = deque()

    @property
    def earliest(self) -> int:
        """First sample that a segment to come could begin with."""
        return self.pieces[0].cut.start if self.pieces else self._cutter.earliest

    @property
    def incomplete(self) -> int:
        """Pieces whose text or words are not known."""
        return sum(not piece.complete for piece in self.pieces)

    # Audio

    def append(self, samples: Samples) -> None:
        """Add audio, float32 [n], mono, 16 kHz, in [-1, 1]."""
        self._cutter.append(samples)

    def finish(self) -> None:
        """Take what was appended for all there is."""
        self._add(self._cutter.finish())

    def frames_to_score(self) -> npt.NDArray[np.float32] | None:
        """Return frames for the detector, float32 [n, 512]; None when it is up to date."""
        job = self._cutter.frames_to_score()
        return None if job is None else job.frames

    def scored(self, probabilities: npt.NDArray[np.float32]) -> None:
        """Take in the detector's answer, float32 [n] in [0, 1]."""
        self._add(self._cutter.scored(probabilities))

    def _add(self, cuts: Iterable[Cut]) -> None:
        self.pieces.extend(RecordedPiece(cut, self.channel) for cut in cuts)

    # Pieces

    def due(self) -> Iterator[tuple[RecordedPiece, StreamOptions]]:
        """Yield the pieces that can be decoded now, each once, and what the engine should know of them.

        Whoever takes one gives it a number before the next is drawn.
        """
        previous, languages, known = self._previous, list(self._languages), True
        for piece in self.pieces:
            if piece.number is None and (known or not self._depends(piece)):
                context = self._context(piece, previous)
                expected = established(languages) if self._depends(piece) else None
                yield piece, StreamOptions(self._options.language, context, expected, recorded=True)
            known = known and piece.complete
            previous = piece.text or previous
            languages += self._evidence(piece)

    def _context(self, piece: RecordedPiece, previous: str) -> str:
        options = self._options
        context = render_context([options.context])
        if piece.cut.first:
            return with_previous(context, options.initial_context, carried=INITIAL_CHARS)
        return with_previous(context, previous) if options.use_previous_context else context

    def _depends(self, piece: RecordedPiece) -> bool:
        """Tell whether what is decoded depends on the texts before it."""
        short = piece.cut.end - piece.cut.start < samples_of_ms(SHORT_PIECE_MS)
        return self._options.use_previous_context or (short and self._options.language is None)

    def _evidence(self, piece: RecordedPiece) -> list[str]:
        """Return the language of a piece, if it is long enough to tell."""
        heard = piece.hypothesis
        long_enough = piece.cut.end - piece.cut.start >= self._evidence_samples
        return [heard.language] if heard is not None and heard.language and heard.text and long_enough else []

    # Segments

    @property
    def first_is_complete(self) -> bool:
        """Whether the next segment is known: also that of a piece which shares audio with it."""
        if not self.pieces or not self.pieces[0].complete:
            return False
        if not self.pieces[0].cut.overlapped:
            return True
        return len(self.pieces) > 1 and self.pieces[1].complete

    def take_first(self) -> Segment | None:
        """Take the next segment, which must be complete; None if nothing was said in it."""
        piece = self.pieces.popleft()
        self._previous = piece.text or self._previous
        self._languages.extend(self._evidence(piece))
        segment = self._rest or self._segment(piece)
        self._rest = None
        if piece.cut.overlapped:
            segment, self._rest = merge_overlapping(segment, self._segment(self.pieces[0]))
        segment = segment.bounded(self._floor, self._cutter.received)
        self._floor = segment.end
        return segment if segment.text else None

    def _segment(self, piece: RecordedPiece) -> Segment:
        heard, cut = piece.hypothesis, piece.cut
        assert heard is not None, "only a complete piece becomes a segment"
        words = tuple(word.shifted(cut.start) for word in piece.words) if self._options.words else ()
        return Segment(
            heard.text,
            cut.speech_start,
            cut.speech_end,
            self.channel,
            heard.language or self._options.language,
            words,
            heard.confidence,
        )
