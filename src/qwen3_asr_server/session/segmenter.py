"""Where utterances and pieces begin and end: a function of the VAD track and the audio alone.

An utterance (wire: item) runs from a start of speech to the silence that ends it; in Manual mode the
client bounds it. What an engine decodes at one go is a *piece* of it, at most `max_piece_s`, so that the
cost of a step never grows with how long somebody speaks.

1.  A piece begins `prefix_padding_ms` before its first speech, but never inside the piece before it.
2.  It ends `trailing_ms` after its last speech, rounded down to the 80 ms grid counted from its start:
    at the end of the utterance, at a pause that `piece_rules` finds long enough for its age, or when the
    client says so. None of this depends on `silence_ms`.
3.  Without any such pause it is cut at the quietest place near `max_piece_s`, and the next piece hears
    `overlap_s` again. In VAD mode an utterance of `max_utterance_s` is cut in the same way, without overlap.
4.  A pause is told with the range its final would have, so that it can be decoded before the silence
    is long enough to be sure.

It knows nothing of engines, texts, ids or clocks; `machine.py` is its only caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qwen3_asr_server.domain import GRID_SAMPLES, SAMPLE_RATE, TurnDetection, samples_of_ms
from qwen3_asr_server.session.endpointer import Activity, Endpointer, EndpointRules, Turn
from qwen3_asr_server.session.options import SessionOptions

Quietest = Callable[[int, int], int]
"""Where the audio between two samples is quietest: the centre of its quietest 80 ms."""


@dataclass(frozen=True, slots=True)
class ItemBegan:
    """VAD mode: an utterance has begun; `at` is the first sample of its speech."""

    at: int


@dataclass(frozen=True, slots=True)
class PieceBegan:
    """Audio from `start` on belongs to a new piece of the open item."""

    start: int
    overlaps: bool = False
    """Its beginning was also the end of the piece before."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Should no speech follow, the open piece will have ended at `upto`."""

    upto: int


@dataclass(frozen=True, slots=True)
class PieceEnded:
    """The open piece is `[its start, end)`; past `limit`, if given, it is silence whatever follows."""

    end: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class ItemEnded:
    """VAD mode: the utterance is over; `at` is one past the last sample of its speech."""

    at: int


Mark = ItemBegan | PieceBegan | Paused | PieceEnded | ItemEnded


def endpoint_rules(turn: TurnDetection | None, options: SessionOptions) -> EndpointRules:
    """Return the endpointing rules of a session; None for `turn` is Manual mode."""
    asked = turn or TurnDetection()
    pause_ms = options.pause_ms if turn is None else min(options.pause_ms, asked.silence_ms / 2)
    return EndpointRules(
        threshold=asked.threshold,
        hysteresis=options.hysteresis,
        min_speech_samples=samples_of_ms(options.min_speech_ms),
        pause_samples=samples_of_ms(pause_ms),
        silence_samples=None if turn is None else samples_of_ms(asked.silence_ms),
    )


class Segmenter:
    """Cut one track of VAD frames into items and pieces.

    Args:
        turn: the session's turn detection; None is Manual mode, in which no item begins or ends here.
        options: the rules.
        origin: first sample of the track; nothing reaches back before it.
        quietest: asked only for audio of the open piece that has been judged.
    """

    def __init__(self, turn: TurnDetection | None, options: SessionOptions, origin: int, quietest: Quietest) -> None:
        self._options = options
        self._manual = turn is None
        self._lead_in = samples_of_ms((turn or TurnDetection()).prefix_padding_ms)
        self._trailing = samples_of_ms(options.trailing_ms)
        self._quietest = quietest
        self._piece_rules = tuple(
            (round(rule.min_age_s * SAMPLE_RATE), samples_of_ms(rule.min_pause_ms)) for rule in options.piece_rules
        )
        self._speech = Endpointer(endpoint_rules(turn, options), origin)
        self._item_start: int | None = None
        self._piece_start: int | None = None
        self._taken = origin

    @property
    def frontier(self) -> int:
        """One past the last sample that was judged."""
        return self._speech.frontier

    @property
    def onset(self) -> int:
        """First sample of the speech that began last."""
        return self._speech.onset

    @property
    def last_speech(self) -> int:
        """One past the last sample of speech so far."""
        return self._speech.last_speech

    @property
    def idle(self) -> bool:
        """True while nobody speaks: settings may change without touching an item."""
        return not self._speech.in_utterance and self._piece_start is None

    @property
    def keep_from(self) -> int:
        """First sample that a later piece could still begin with."""
        return max(self._taken, self.frontier - self._lead_in - samples_of_ms(self._options.min_speech_ms))

    @property
    def partial_upto(self) -> int | None:
        """How far the open piece may be heard now; None without a piece or in a pause.

        Never past what the piece would keep if no speech followed, so that no engine has to take back audio.
        """
        if self._piece_start is None or self._speech.activity in (Activity.PAUSED, Activity.RESUMING):
            return None
        return self._on_grid(min(self.frontier, self._speech.last_speech + self._kept_silence()))

    def retune(self, turn: TurnDetection) -> None:
        """Use other endpointing rules from the next frame on. Only while `idle`."""
        assert self.idle, "an utterance keeps the rules it began with"
        self._taken = self.keep_from  # what the old rules had no need of is gone
        self._lead_in = samples_of_ms(turn.prefix_padding_ms)
        self._speech.rules = endpoint_rules(turn, self._options)

    def push(self, probability: float) -> list[Mark]:
        """Judge the next frame and return what it changed, in order."""
        turn = self._speech.push(probability)
        marks: list[Mark] = []
        if turn is Turn.STARTED and not self._manual:
            marks.append(ItemBegan(self._speech.onset))
        if self._speech.activity is Activity.SPEAKING and self._piece_start is None:
            marks.append(self._begin_piece(max(self._speech.onset - self._lead_in, self._taken)))
        if turn is Turn.ENDED:
            marks += self._end_item(None)
        elif self._piece_start is not None:
            marks += self._watch_piece(turn)
        return marks

    def close(self, at: int) -> list[Mark]:
        """End the track at sample `at`, which the judged frames have reached: end what is open."""
        if self._manual:
            return self._end_piece(self._trailing, at)
        return self._end_item(at) if self._speech.in_utterance else []

    def _watch_piece(self, turn: Turn | None) -> list[Mark]:
        """Look at the open piece: a pause, a cut at a pause, a forced cut."""
        assert self._piece_start is not None
        if self._item_is_due():
            return self._cut_item()
        silence = self._speech.silence_samples
        if silence and silence >= self._needed_pause():
            return self._end_piece(self._kept_silence(), None)
        if self.frontier - self._piece_start >= self._options.max_piece_s * SAMPLE_RATE:
            return self._cut_piece()
        return [Paused(self._end_after_speech(self._trailing))] if turn is Turn.PAUSED else []

    def _begin_piece(self, start: int, *, overlaps: bool = False) -> PieceBegan:
        self._piece_start = start
        if self._item_start is None and not self._manual:
            self._item_start = start
        return PieceBegan(start, overlaps)

    def _end_piece(self, kept_silence: int, limit: int | None) -> list[Mark]:
        if self._piece_start is None:
            return []
        end = self._end_after_speech(kept_silence)
        self._taken = end if limit is None else limit
        self._piece_start = None
        return [PieceEnded(end, limit)]

    def _end_item(self, limit: int | None) -> list[Mark]:
        at = self._speech.last_speech if limit is None else min(self._speech.last_speech, limit)
        self._item_start = None
        return [*self._end_piece(self._trailing, limit), ItemEnded(at)]

    def _cut_piece(self) -> list[Mark]:
        cut = self._forced_cut()
        again = max(cut - samples_of_ms(self._options.overlap_s * 1000), self._piece_start_or_zero() + GRID_SAMPLES)
        marks = self._end_piece_at(cut)
        if cut < self._speech.last_speech:
            marks.append(self._begin_piece(min(again, cut), overlaps=again < cut))
        return marks

    def _item_is_due(self) -> bool:
        """Tell whether the utterance is too long and its open piece long enough to choose a place in it."""
        if self._item_start is None or self._piece_start is None:
            return False
        old = self.frontier - self._item_start >= self._options.max_utterance_s * SAMPLE_RATE
        return old and self.frontier - self._piece_start >= SAMPLE_RATE

    def _cut_item(self) -> list[Mark]:
        if self._speech.activity in (Activity.PAUSED, Activity.RESUMING):
            self._speech.rest()
            return self._end_item(None)
        cut = self._forced_cut()
        marks = [*self._end_piece_at(cut), ItemEnded(min(cut, self._speech.last_speech))]
        self._item_start = None
        if cut < self._speech.last_speech:
            return [*marks, ItemBegan(cut), self._begin_piece(cut)]
        self._speech.rest()
        return marks

    def _end_piece_at(self, cut: int) -> list[Mark]:
        self._taken = cut
        self._piece_start = None
        return [PieceEnded(cut)]

    def _forced_cut(self) -> int:
        """Return the quietest place of the last seconds, on the grid, strictly inside the open piece."""
        start = self._piece_start_or_zero()
        earliest = max((start + self.frontier) // 2, self.frontier - samples_of_ms(self._options.quiet_search_s * 1000))
        return max(self._on_grid(self._quietest(earliest, self.frontier)), start + GRID_SAMPLES)

    def _needed_pause(self) -> int:
        """Return the pause that ends a piece of this age, in samples."""
        age = self.frontier - self._piece_start_or_zero()
        return min(pause for min_age, pause in self._piece_rules if age >= min_age)

    def _kept_silence(self) -> int:
        """Return how much of a pause the open piece would keep: no more than the pause that ends it."""
        return self._trailing if self._piece_start is None else min(self._trailing, self._needed_pause())

    def _end_after_speech(self, kept_silence: int) -> int:
        return self._on_grid(self._speech.last_speech + kept_silence)

    def _on_grid(self, sample: int) -> int:
        start = self._piece_start_or_zero()
        return start + max(0, sample - start) // GRID_SAMPLES * GRID_SAMPLES

    def _piece_start_or_zero(self) -> int:
        return 0 if self._piece_start is None else self._piece_start
