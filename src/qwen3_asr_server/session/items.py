"""Items and their pieces: what is known of each, and the texts that follow from it.

An item is the list of its pieces. A piece gathers hypotheses until its final; the item's text is the
finals of its pieces, joined. While it is open the shown text is split into a stable prefix, which is
never taken back once shown, and an unstable tail.

It knows nothing of VAD, jobs or time; `machine.py` moves the states.
"""

from collections.abc import Sequence
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
    expected_language: str | None = None
    """What the session was in when the piece began."""
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
    placing: int | None = None
    """The end of the range whose words are being placed."""
    placed: tuple[int, Sequence[Word]] | None = None
    """The words that were placed last, and the end of their range."""
    failures: int = 0
    error: AsrServerError | None = None

    @property
    def words(self) -> Sequence[Word]:
        """The words of its final, relative to its start; empty where nobody has placed them."""
        if self.final is not None and self.final.words:
            return self.final.words
        return self.placed[1] if self.placed and self.placed[0] == self.end else ()

    @property
    def waits_for_words(self) -> bool:
        """Whether the words of its final are being placed."""
        return self.placing is not None and self.placing == self.end

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

    def shown_text(self) -> str:
        """Return all that is known of its text; what was confirmed stays in it until the final."""
        if self.final is not None:
            return self.final.text
        return self.stable.confirmed + self.stable.tail(self.best.text if self.best else "")

    def stable_text(self, following: "Piece | None") -> str:
        """Return what of its text will stay, given the piece after it.

        A following piece that heard its end again may yet correct that end; what was confirmed is older than
        the overlap.
        """
        if self.final is None:
            return self.stable.confirmed
        if following is None or not following.overlaps or following.final is not None:
            return self.final.text
        confirmed = self.stable.confirmed
        return confirmed if self.final.text.startswith(confirmed) else ""


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
    failure: AsrServerError | None = None
    """Why it has no transcript, if that is not the fault of one of its pieces."""

    @property
    def open_piece(self) -> Piece | None:
        """The piece that still grows."""
        return self.pieces[-1] if self.pieces and self.pieces[-1].end is None else None

    @property
    def ready(self) -> bool:
        """True when its final, or its failure, can be told."""
        return self.committed and (self.failure is not None or all(piece.over for piece in self.pieces))

    @property
    def error(self) -> AsrServerError | None:
        """Its failure, or the first among its pieces."""
        return self.failure or next((piece.error for piece in self.pieces if piece.error), None)

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
        """Work out the stable prefix and unstable tail anew; tell whether they changed.

        Stable is what settled pieces say, and what the first unsettled one has confirmed; nothing behind it.
        """
        texts: list[tuple[str, bool]] = []
        stable: list[tuple[str, bool]] = []
        settled = True
        for piece, following in zip(self.pieces, [*self.pieces[1:], None], strict=True):
            texts.append((piece.shown_text(), piece.overlaps))
            if settled:
                stable.append((piece.stable_text(following), piece.overlaps))
                settled = stable[-1][0] == texts[-1][0] and piece.final is not None
        return self._show(_joined(stable), _joined(texts))

    def all_words(self) -> list[Word]:
        """Return the words of all finals on the session clock; those heard twice at an overlap once."""
        words: list[Word] = []
        floor = 0
        for piece in self.pieces:
            for word in piece.words if piece.final else ():
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
        self.shown_stable, self.shown_unstable = stable, unstable
        return True


def _joined(parts: list[tuple[str, bool]]) -> str:
    text = ""
    for part, overlaps in parts:
        text = join_texts(merge_overlap(text, part) if overlaps else [text, part])
    return text
