"""What of a session is decoded, and what its client is told of it.

A piece has at most one decode running. While it is open a partial is *offered*, and the scheduler pulls
it when its turn comes. At a pause a candidate is queued: the decode of the final's own audio. When the
piece ends:

    running     a final of exactly [start, end) is known    then
    ──────────  ──────────────────────────────────────────  ──────────────────────────────────────────────
    nothing     yes: a candidate came true                   it is the final, and no work is left
    nothing     no                                           queue FINAL
    anything    –                                            wait for its outcome, then as above

Items end in the order they began, each committed one with exactly one `Final` or `UtteranceFailed`. A
FINAL that fails is tried once more if its error allows it; partials and candidates are simply due again. An item
that was in an engine when it died is not: it may be what killed it. It fails when it ends, and is not heard until then.

It knows no VAD, no commands and no clock beyond the `now` it is given; `machine.py` is its only caller.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from qwen3_asr_server.domain import SAMPLE_RATE, Samples, SessionConfig, StepKind, StreamOptions, samples_of_ms
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.messages import (
    Aligned,
    Committed,
    Decode,
    DecodeFailed,
    Event,
    Final,
    Heard,
    Job,
    Lost,
    Partial,
    Release,
    SpeechStopped,
    UtteranceFailed,
)
from qwen3_asr_server.session.items import Item, Piece
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.words import WordTimes
from qwen3_asr_server.text.join import join_texts
from qwen3_asr_server.text.languages import ESTABLISHED_BY, established
from qwen3_asr_server.text.stability import StablePrefix


@dataclass(frozen=True, slots=True)
class Offer:
    """A partial that could be decoded."""

    item: int
    piece: int
    unheard_s: float
    """Audio of the piece not heard by the engine yet, in seconds."""
    last_step: float
    """When the piece's last step was pulled, or the piece began."""
    due: float
    """Earliest time of the next pull."""


class Recognition:
    """The items of a session that have not been told, and the pieces that still need an engine.

    Args:
        options: limits and tuning.
        read: gives the audio of a range, silence past a limit: `(start, upto, limit)`.

    Attributes:
        events, jobs: what has been decided since the owner last took them.
        open: the item that grows now.
        words: which words are waited for.
        stale_outcomes: answers for a piece that was gone.
    """

    def __init__(self, options: SessionOptions, read: Callable[[int, int, int | None], Samples]) -> None:
        self._options = options
        self._read = read
        self._items: deque[Item] = deque()
        self._pieces: dict[int, tuple[Item, Piece]] = {}
        self._item_count = 0
        self._piece_count = 0
        self._last_committed: int | None = None
        self._transcripts: deque[str] = deque()
        self._transcript_chars = 0
        self._languages: deque[str] = deque(maxlen=ESTABLISHED_BY)
        self.events: list[Event] = []
        self.jobs: list[Job] = []
        self.open: Item | None = None
        self.words = WordTimes(options)
        self.stale_outcomes = 0

    @property
    def empty(self) -> bool:
        """True when every item has been told."""
        return not self._items

    @property
    def transcript(self) -> str:
        """The finals so far, joined; of a very long session the last `transcript_chars`."""
        return join_texts(self._transcripts)

    def first_needed(self, default: int) -> int:
        """Return the first sample that a piece may still be decoded from, or cut at."""
        pieces = [piece for _, piece in self._pieces.values()]
        if self.open is not None and self.open.open_piece is not None:
            pieces.append(self.open.open_piece)
        return min((piece.start for piece in pieces), default=default)

    def unheard_samples(self, frontier: int) -> int:
        """Return how much of the judged audio no engine has heard yet."""
        return sum(
            max(0, (frontier if piece.end is None else piece.end) - max(piece.heard_upto, piece.start))
            for _, piece in self._pieces.values()
        )

    # Items and pieces begin and end

    def begin_item(self, config: SessionConfig, *, visible: bool) -> Item:
        """Open an item that lives by `config`, whatever the session is told later."""
        language = config.language or self._options.default_language
        options = StreamOptions(config.language, config.context)
        self.open = Item(self._item_count, options, config.words, language, visible)
        self._item_count += 1
        self._items.append(self.open)
        return self.open

    def begin_piece(self, start: int, now: float, *, overlaps: bool) -> None:
        """Open a piece of the open item."""
        assert self.open is not None, "a piece belongs to an item"
        stable = StablePrefix(samples_of_ms(self._options.stable_age_s * 1000))
        expected = established(tuple(self._languages))
        piece = Piece(self._piece_count, start, overlaps, stable, expected_language=expected, last_step=now)
        self._piece_count += 1
        self.open.pieces.append(piece)
        if self.open.failure is None:
            self._pieces[piece.number] = (self.open, piece)

    def pause(self, upto: int) -> None:
        """Note the range that the open piece would have if nothing more were said."""
        self._open_piece().candidate_upto = upto

    def end_piece(self, end: int, limit: int | None) -> None:
        """Close the open piece at `end`."""
        piece = self._open_piece()
        piece.end, piece.limit = end, limit
        self._settle_piece(piece)

    def bound(self, limit: int) -> None:
        """Let no piece wait for, or hear, what comes behind the end of its track."""
        for _, piece in self._pieces.values():
            if piece.limit is None and (piece.end is None or piece.end > limit):
                piece.limit = limit

    def commit(self) -> None:
        """Close the open item: its final, or its failure, will follow."""
        item, self.open = self.open, None
        assert item is not None, "only an open item can be committed"
        item.visible = item.committed = True
        self.events.append(Committed(item.number, self._last_committed))
        self._last_committed = item.number
        self._show(item)

    def drop(self, at: int) -> None:
        """Forget the open item, if there is one; `at` is where the client is told that it stopped."""
        item, self.open = self.open, None
        if item is None:
            return
        self._items.remove(item)
        if item.visible:
            self.events.append(SpeechStopped(item.number, at))
        self.words.forget(item)
        for piece in item.pieces:
            self._release(piece)

    def release_all(self) -> None:
        """Need no engine any more."""
        for _, piece in list(self._pieces.values()):
            self._release(piece)

    def fail_all(self, error: AsrServerError, at: int) -> None:
        """Tell the failure of every item that has not been told."""
        for item in self._items:
            if not item.ready:
                item.failure = item.failure or error
        if self.open is not None:
            if self.open.visible:
                self.events.append(SpeechStopped(self.open.number, at))
            self.commit()
        self.release_all()
        self.tell(math.inf)

    # Decodes

    def offer(self, upto: int | None) -> Offer | None:
        """Return the partial that is worth its cost, if the open piece may be heard up to `upto`."""
        piece = self.open.open_piece if self.open else None
        if self.open is None or piece is None or upto is None:
            return None
        if piece.running is not None or self.open.failure is not None:
            return None
        unheard_s = (upto - max(piece.heard_upto, piece.start)) / SAMPLE_RATE
        if unheard_s < self._options.partial_min_new_s:
            return None
        due = piece.last_step + self._options.partial_floor_s
        return Offer(self.open.number, piece.number, unheard_s, piece.last_step, due)

    def pull(self, upto: int | None, now: float) -> Decode | None:
        """Take the offered partial."""
        offer = self.offer(upto)
        if offer is None or upto is None:
            return None
        item, piece = self._pieces[offer.piece]
        piece.last_step = now
        return self._decode(item, piece, StepKind.PARTIAL, upto)

    def queue(self, received: int, *, paused: bool) -> None:
        """Queue the candidates and finals whose audio has arrived, oldest first, a few at a time."""
        urgent = sum(p.running in (StepKind.FINAL, StepKind.CANDIDATE) for _, p in self._pieces.values())
        for item, piece in self._pieces.values():
            if urgent >= self._options.max_finals_in_flight:
                return
            if piece.end is None and not paused:
                piece.candidate_upto = None
            upto = piece.candidate_upto if piece.end is None else piece.end
            if upto is None or piece.running is not None or (piece.limit is None and upto > received):
                continue
            piece.candidate_upto = None
            kind = StepKind.CANDIDATE if piece.end is None else StepKind.FINAL
            self.jobs.append(self._decode(item, piece, kind, upto))
            urgent += 1

    def heard(self, heard: Heard) -> None:
        """Take in a hypothesis."""
        found = self._ended(heard.piece, heard.kind)
        if found is None:
            return
        item, piece = found
        if heard.kind is not StepKind.FINAL:
            piece.hear(heard.hypothesis, heard.upto)
        if heard.kind is StepKind.FINAL or (heard.kind is StepKind.CANDIDATE and heard.hypothesis.final):
            piece.candidate = (heard.upto, heard.hypothesis)
            read = partial(self._read, piece.start, heard.upto, piece.limit)
            align = self.words.ask(item, piece, heard.hypothesis, heard.upto, read)
            self.jobs += [align] if align is not None else []
        self._settle_piece(piece)
        self._show(item)

    def failed(self, failed: DecodeFailed) -> None:
        """Take in a failure."""
        found = self.answered(failed.piece, failed.kind)
        if found is None or failed.kind is not StepKind.FINAL:
            return
        _, piece = found
        piece.failures += 1
        if piece.failures > 1 or not failed.error.retryable:
            piece.error = failed.error
            self._release(piece)

    def lost(self, lost: Lost) -> None:
        """Give up the item of a piece that died with the engine."""
        if lost.piece not in self._pieces:
            self.stale_outcomes += 1
            return
        item, _ = self._pieces[lost.piece]
        item.failure = lost.error
        for piece in item.pieces:
            self._release(piece)

    def answered(self, number: int, kind: StepKind) -> tuple[Item, Piece] | None:
        """Note that the decode running for a piece is over and told nothing; None if there is no such decode."""
        found = self._ended(number, kind)
        if found is not None:
            self._settle_piece(found[1])
        return found

    def aligned(self, aligned: Aligned) -> None:
        """Take in the places of words."""
        self.stale_outcomes += not self.words.take(aligned)

    def tell(self, now: float) -> None:
        """Tell the finals and failures that are ready, in order; a final may have to wait for its words."""
        while self._items and self._items[0].ready and not self.words.holds_back(self._items[0], now):
            item = self._items.popleft()
            words = self.words.told(item)
            if item.error is not None:
                self.events.append(UtteranceFailed(item.number, item.error))
                continue
            text = item.transcript()
            self._remember(text)
            confidence = item.confidence() if item.words_wanted else None
            self.events.append(Final(item.number, text, item.spoken_language(), words, confidence))

    # Helpers

    def _remember(self, text: str) -> None:
        """Keep a final for the session's transcript, and forget the oldest before memory grows with time."""
        self._transcripts.append(text)
        self._transcript_chars += len(text)
        while self._transcript_chars > self._options.transcript_chars:
            self._transcript_chars -= len(self._transcripts.popleft())

    def _open_piece(self) -> Piece:
        piece = self.open.open_piece if self.open else None
        assert piece is not None, "the segmenter names a piece only while one is open"
        return piece

    def _decode(self, item: Item, piece: Piece, kind: StepKind, upto: int) -> Decode:
        piece.running = kind
        audio = self._read(piece.start, upto, piece.limit)
        options = replace(item.options, expected_language=piece.expected_language)
        return Decode(item.number, piece.number, kind, piece.start, upto, audio, options)

    def _ended(self, number: int, kind: StepKind) -> tuple[Item, Piece] | None:
        """Take note of the end of a decode; None if there is no such decode."""
        found = self._pieces.get(number)
        if found is None or found[1].running is not kind:
            self.stale_outcomes += 1
            return None
        found[1].running = None
        return found

    def _settle_piece(self, piece: Piece) -> None:
        """Close a piece whose final is known."""
        final = piece.settles()
        if piece.running is None and final is not None:
            piece.final = final
            self._note_language(piece)
            self._release(piece)

    def _note_language(self, piece: Piece) -> None:
        """Remember what language a piece was in, if it is long enough to tell."""
        item = self._pieces[piece.number][0] if piece.number in self._pieces else None
        if item is None or piece.final is None or piece.end is None or item.options.language is not None:
            return
        long_enough = piece.end - piece.start >= samples_of_ms(self._options.language_evidence_s * 1000)
        if long_enough and piece.final.text and piece.final.language:
            self._languages.append(piece.final.language)

    def _release(self, piece: Piece) -> None:
        if self._pieces.pop(piece.number, None) is not None:
            self.jobs.append(Release(piece.number))

    def _show(self, item: Item) -> None:
        if item.visible and not item.ready and item.show():
            self.events.append(Partial(item.number, item.shown_stable, item.shown_unstable, item.spoken_language()))
