"""Items and their pieces: what is known of each, and the texts that follow from it.

An item is the list of its pieces. A piece gathers hypotheses until its final; the item's text is the
finals of its pieces, joined. While it is open the shown text is split into a stable prefix, which is
never taken back once shown, and an unstable tail.

It knows nothing of VAD, jobs or time; `machine.py` moves the states.
"""

from dataclasses import dataclass, field

from qwen3_asr_server.domain import Hypothesis, StepKind, StreamOptions, Word
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.text.join import join_texts, merge_overlap
from qwen3_asr_server.text.stability import StablePrefix, tail_after


@dataclass(slots=True)
class Piece:
    """What one engine stream decodes: `[start, end)` of the session clock."""

    number: int
    start: int
    overlaps: bool
    """Its beginning was also the end of the piece before: the texts share words."""
    stable: StablePrefix
    end: int | None = None
    """None while open."""
    limit: int | None = None
    """Where this piece's audio ends for good; silence follows, whatever the client goes on to send."""
    last_step: float = 0.0
    running: StepKind | None = None
    heard_upto: int = 0
    candidate_upto: int | None = None
    """The range a final would have if the present pause lasted; None while speech runs."""
    best: Hypothesis | None = None
    """The latest hypothesis."""
    candidate: tuple[int, Hypothesis] | None = None
    """An answer that is the final, should the piece end there."""
    final: Hypothesis | None = None
    failures: int = 0
    error: AsrServerError | None = None

    @property
    def over(self) -> bool:
        """True when nothing will be decoded for it any more."""
        return self.final is not None or self.error is not None

    def settles(self) -> Hypothesis | None:
        """Return the final that is already known: the candidate of the range the piece ended with."""
        return self.candidate[1] if self.candidate and self.candidate[0] == self.end else None

    def hear(self, hypothesis: Hypothesis, upto: int) -> None:
        """Take in a hypothesis that is not the final."""
        self.best = hypothesis
        self.heard_upto = max(self.heard_upto, upto)
        self.stable.update(hypothesis.text, hypothesis.words, upto - self.start)


@dataclass(slots=True)
class Item:
    """One utterance of the wire."""

    number: int
    options: StreamOptions
    words_wanted: bool
    language: str
    """Reported until an engine knows better."""
    visible: bool
    """The client knows of it: from its start in VAD mode, from its commit in Manual mode."""
    pieces: list[Piece] = field(default_factory=list)
    committed: bool = False
    shown_stable: str = ""
    shown_unstable: str = ""
    rewrites: int = 0
    """How often a shown stable prefix was changed. Zero by construction, counted to be sure."""

    @property
    def open_piece(self) -> Piece | None:
        """The piece that still grows."""
        return self.pieces[-1] if self.pieces and self.pieces[-1].end is None else None

    @property
    def ready(self) -> bool:
        """True when its final, or its failure, can be told."""
        return self.committed and all(piece.over for piece in self.pieces)

    @property
    def error(self) -> AsrServerError | None:
        """The first failure among its pieces."""
        return next((piece.error for piece in self.pieces if piece.error), None)

    def transcript(self) -> str:
        """Return the joined finals."""
        return _joined([(piece.final.text if piece.final else "", piece.overlaps) for piece in self.pieces])

    def spoken_language(self) -> str:
        """Return the language of the latest hypothesis that has one, else what was asked for."""
        for piece in reversed(self.pieces):
            known = piece.final or piece.best
            if known and known.language:
                return known.language
        return self.language

    def show(self) -> bool:
        """Work out the stable prefix and unstable tail anew; tell whether they changed."""
        texts: list[tuple[str, bool]] = []
        stable_texts: list[tuple[str, bool]] = []
        for piece in self.pieces:
            settled = piece.final is not None and len(stable_texts) == len(texts)
            if settled and piece.final:
                texts.append((piece.final.text, piece.overlaps))
                stable_texts.append(texts[-1])
                continue
            if len(stable_texts) == len(texts):
                stable_texts.append((piece.stable.confirmed, piece.overlaps))
                texts.append((piece.stable.confirmed + piece.stable.tail(_text(piece)), piece.overlaps))
                continue
            texts.append((_text(piece), piece.overlaps))
        return self._show(_joined(stable_texts), _joined(texts))

    def all_words(self) -> list[Word]:
        """Return the words of all finals on the session clock; those heard twice at an overlap once."""
        words: list[Word] = []
        floor = 0
        for piece in self.pieces:
            for word in piece.final.words if piece.final else ():
                placed = word.shifted(piece.start)
                if not piece.overlaps or (placed.start + placed.end) // 2 >= floor:
                    words.append(placed)
            floor = piece.end or floor
        return words

    def confidence(self) -> float | None:
        """Return the mean confidence of its pieces, weighted by their length; None if any has none."""
        total, weight = 0.0, 0
        for piece in self.pieces:
            if piece.final is None or piece.final.confidence is None or piece.end is None:
                return None
            length = piece.end - piece.start
            total, weight = total + piece.final.confidence * length, weight + length
        return total / weight if weight else None

    def _show(self, stable: str, full: str) -> bool:
        if not stable.startswith(self.shown_stable):
            stable = self.shown_stable
        unstable = full[len(stable) :] if full.startswith(stable) else tail_after(stable, full)
        if (stable, unstable) == (self.shown_stable, self.shown_unstable):
            return False
        self.rewrites += not stable.startswith(self.shown_stable)
        self.shown_stable, self.shown_unstable = stable, unstable
        return True


def _text(piece: Piece) -> str:
    known = piece.final or piece.best
    return known.text if known else ""


def _joined(parts: list[tuple[str, bool]]) -> str:
    text = ""
    for part, overlaps in parts:
        text = join_texts(merge_overlap(text, part) if overlaps else [text, part])
    return text
