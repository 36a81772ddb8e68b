"""The owner of the engine: the one narrow interface between sessions and recognition.

A session attaches and gets a `Lane`. Through it the session hands in finals and candidates, which run as soon
as the engine has room for them, finals first; and it *offers* partials, which the scheduler *pulls*:
whenever a slot is free, from the session that has waited longest. Pieces of recordings take the room that is left.

A stream is opened with the first step of a piece and closed at its release, or when a step was cut off; the
next step, having all audio, then opens another. A piece has at most one step at a time. When the engine itself is
gone, the pieces that it had begun are lost and all others wait for the next one.

It knows no sessions beyond `StepSource` (`lanes.py`), no protocols, no VAD. Built by the services.
"""

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._base import Engine, Limited
from qwen3_asr_server.errors import AsrServerError, EngineCrashed, EngineError, EngineTimeout
from qwen3_asr_server.messages import Decode, DecodeFailed, Heard, Lost, Outcome, Skipped
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.alarm import Alarm, Clock
from qwen3_asr_server.runtime.crowding import Crowding
from qwen3_asr_server.runtime.lanes import Lane, Piece, Step, StepSource
from qwen3_asr_server.runtime.slots import PartialSlots, Waiting, choose, next_due
from qwen3_asr_server.runtime.steps import close_stream, leaves_stream_usable, open_stream, perform_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Bounds of the scheduler."""

    max_partials: int = 32
    """Partials at once, at most; how many it is now follows the measured service time."""
    max_urgent: int = 32
    """Finals and candidates at once; more wait."""
    longest_interval_s: float = 2.0
    """Interval between a speaking session's heard partials, and wait of a final for its turn, above which no more
    sessions should come."""
    step_timeout_s: float = 63.0
    """Longest step with its waits inside the engine, besides half of its audio's length. Engines keep the
    deadlines of their own work themselves; this one is for an engine that does not come back."""
    queue_timeout_s: float = 60.0
    """Longest wait of a final or candidate for its turn."""
    max_recorded: int = 16
    """Pieces of recordings at once, one less for each step of a live session that runs; while no final or candidate
    waits there is always room for one, so that a recording comes to its end however much is spoken."""
    recorded_timeout_s: float = 600.0
    """Longest wait of a piece of a recording for its turn while no other such piece gets one, and its longest step:
    inside the engine it waits for live sessions without a deadline of its own."""
    close_timeout_s: float = 5.0
    """Longest wait for a stream to give its resources back."""


class StepScheduler:
    """Run steps of all sessions on one engine. Steps wait until there is one: `engine_ready`.

    Args:
        options: bounds.
        metrics: where waits, services and slots are noted.
        clock: seconds, monotonic.
        on_death: called when the scheduler itself has failed and serves nobody any more.

    Attributes:
        on_crash: called when a step has ended in `EngineCrashed`, before that is answered: whoever owns the engine may
            know that all of it is gone.
    """

    def __init__(
        self,
        options: SchedulerOptions,
        metrics: Metrics,
        clock: Clock,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_crash: Callable[[], None] = lambda: None
        self._engine: Engine | None = None
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._slots = PartialSlots(options.max_partials, clock())
        self._crowding: Crowding[Lane] = Crowding(options.longest_interval_s, clock())
        self._on_death = on_death
        self._lanes: set[Lane] = set()
        self._waiting: dict[Lane, Waiting[Lane]] = {}
        self._urgent: list[tuple[int, int, Step]] = []
        self._recorded: deque[Step] = deque()
        self._recorded_running = 0
        self._recorded_began_at = clock()
        self._order = itertools.count()
        self._sessions = itertools.count()
        self._running = dict.fromkeys(StepKind, 0)
        self._closing = 0
        self._ready_at = clock()
        self._failure: EngineError | None = None
        self._stopping = False
        self._dead = False
        self._wake = asyncio.Event()
        self._alarm = Alarm(clock, self._wake.set)
        self._runner: asyncio.Task[None] | None = None
        metrics.partial_slots.set_function(lambda: self._slots.slots)

    def start(self) -> None:
        """Begin to serve lanes; steps wait for `engine_ready`."""
        self._runner = asyncio.create_task(self._run(), name="step scheduler")
        self._runner.add_done_callback(self._ran)

    def engine_ready(self, engine: Engine) -> None:
        """Say that an engine has started, shared by all lanes from now on."""
        self._engine, self._failure = engine, None
        self._ready_at = self._clock()
        self._crowding.restart(self._ready_at)
        self._wake.set()

    @property
    def is_open(self) -> bool:
        """Whether there is an engine and steps run."""
        return self._engine is not None and not self._dead

    @property
    def crowded(self) -> bool:
        """Whether more sessions would make partials rarer than promised, or find no room in the engine."""
        if isinstance(self._engine, Limited) and self._engine.full:
            return True
        queued = (step for *_, step in self._urgent if step.decode.kind is StepKind.FINAL and not step.dropped)
        finals = ((step.lane, max(step.queued_at, self._ready_at)) for step in queued)
        return self.is_open and self._crowding.crowded(self._clock(), finals)

    def engine_failed(self, error: EngineError) -> None:
        """Say that the engine could not start: what waits, and what comes, fails with `error`."""
        self._engine, self._failure = None, error
        self._wake.set()

    def engine_gone(self, error: EngineError) -> None:
        """Say that the engine is no more: the pieces that it has begun are lost, the others wait for the next one.

        Args:
            error: what becomes of the items of those pieces.
        """
        self._engine, self._failure = None, None
        begun = [(lane, number) for lane in self._lanes for number, piece in lane.pieces.items() if piece.stream]
        for lane, number in begun:
            lane.release(number)
        for lane, number in begun:
            lane.source.deliver(Lost(number, error))
        self._wake.set()

    async def stop(self) -> None:
        """Drop everything and close all streams, within a deadline."""
        self._stopping = True
        self._wake.set()
        runner, self._runner = self._runner, None
        if runner is None:
            return
        await asyncio.wait({runner}, timeout=2 * self._options.close_timeout_s)
        if not runner.done():
            _log.error("streams did not close in time")
            runner.cancel()

    def attach(self, source: StepSource) -> Lane:
        """Let a session in."""
        lane = Lane(self, source, next(self._sessions))
        self._lanes.add(lane)
        return lane

    def stats(self) -> dict[str, int]:
        """Return what runs and waits now."""
        return {
            "partial_slots": self._slots.slots,
            "partials_running": self._running[StepKind.PARTIAL],
            "partials_waiting": len(self._waiting),
            "finals_running": self._urgent_running,
            "finals_waiting": sum(not step.dropped for *_, step in self._urgent),
            "recorded_running": self._recorded_running,
            "recorded_waiting": sum(not step.dropped for step in self._recorded),
            "open_streams": sum(piece.stream is not None for lane in self._lanes for piece in lane.pieces.values()),
        }

    # What lanes call

    def offered(self, lane: Lane) -> None:
        """Look at the lane's offer anew."""
        offer = lane.source.offer() if lane in self._lanes else None
        before = self._waiting.pop(lane, None)
        if offer is None:
            if not lane.is_being_heard:
                self._crowding.rests(lane)
            return
        now = self._clock()
        self._crowding.wants(lane, offer.last_step)
        self._waiting[lane] = Waiting(lane, offer.last_step, offer.due, before.offered if before else now)
        if self._running[StepKind.PARTIAL] < self._slots.slots:
            if offer.due <= now:
                self._wake.set()
            else:
                self._alarm.set(offer.due)

    def queue(self, lane: Lane, decode: Decode) -> None:
        """Run a final or candidate when its turn comes."""
        step = self._new_step(lane, decode, self._clock())
        if step.recorded:
            self._recorded.append(step)
        else:
            heapq.heappush(self._urgent, (decode.kind, next(self._order), step))
        self._wake.set()

    def _new_step(self, lane: Lane, decode: Decode, queued_at: float) -> Step:
        piece = lane.pieces.setdefault(decode.piece, Piece())
        assert piece.step is None, "the machine asks for one decode of a piece at a time"
        piece.step = Step(lane, piece, decode, queued_at)
        return piece.step

    def drop(self, piece: Piece) -> None:
        """Give up what waits or runs for a piece and close its stream."""
        step, piece.step = piece.step, None
        if step is not None:
            step.dropped = True
        if step is not None and step.task is not None:
            step.task.cancel()  # `_ended` closes the stream, when the step has let go of it
        else:
            self._close(piece)

    def forget(self, lane: Lane) -> None:
        """Serve the lane no more."""
        self._lanes.discard(lane)
        self._waiting.pop(lane, None)
        self._crowding.forget(lane)

    # The loop

    def _ran(self, runner: asyncio.Task[None]) -> None:
        """See to it that the end of the loop, if it was not asked to end, is not taken for a quiet moment."""
        error = None if runner.cancelled() else runner.exception()
        if self._stopping and error is None:
            return
        self._engine, self._dead = None, True
        _log.error("the step scheduler has failed", exc_info=error)
        self._on_death()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                self._expire()
                self._serve_urgent()
                now = self._clock()
                self._serve_partials(now)
                self._serve_recorded()
                self._alarm.set(self._next_deadline(now))
            self._alarm.cancel()
            for lane in list(self._lanes):
                lane.detach()
            while self._closing or self._recorded_running or any(self._running.values()):
                self._wake.clear()
                await self._wake.wait()

    def _expire(self) -> None:
        """Fail what waited for too long, or waits for an engine that did not start."""
        urgent, self._urgent = self._urgent, []
        recorded, self._recorded = self._recorded, deque()
        # Whoever is told of a failure may queue a step at once.
        kept = [entry for entry in urgent if self._still_waits(entry[-1])]
        self._urgent += kept
        heapq.heapify(self._urgent)
        self._recorded.extendleft(reversed([step for step in recorded if self._still_waits(step)]))

    def _still_waits(self, step: Step) -> bool:
        if step.dropped:
            return False
        if self._failure is not None:
            self._answer(step, _failed(step, self._failure))
        elif self._deadline(step) <= self._clock():
            self._answer(step, _failed(step, EngineTimeout("The recogniser had no time for this utterance.")))
        else:
            return True
        return False

    def _deadline(self, step: Step) -> float:
        """Return until when a step may wait for its turn."""
        if step.recorded:  # each turn of any recording brings the others nearer, however many they are
            return max(step.queued_at, self._recorded_began_at) + self._options.recorded_timeout_s
        return step.queued_at + self._options.queue_timeout_s

    def _serve_urgent(self) -> None:
        while self._engine is not None and self._urgent and self._urgent_running < self._options.max_urgent:
            step = heapq.heappop(self._urgent)[-1]
            if not step.dropped:
                self._begin(step, self._engine)

    def _serve_partials(self, now: float) -> None:
        if self._engine is None:
            return
        for chosen in choose(self._waiting.values(), now, self._slots.slots - self._running[StepKind.PARTIAL]):
            del self._waiting[chosen.lane]
            decode = chosen.lane.source.pull(now)
            if decode is not None:
                self._begin(self._new_step(chosen.lane, decode, max(chosen.due, chosen.offered)), self._engine)

    def _serve_recorded(self) -> None:
        while self._engine is not None and self._recorded and self._recorded_running < self._recorded_room:
            # The recording that has waited longest since its last turn: a short one is not behind all of a long one.
            step = min(self._recorded, key=lambda step: step.lane.last_turn)
            self._recorded.remove(step)
            if not step.dropped:
                self._begin(step, self._engine)

    @property
    def _recorded_room(self) -> int:
        """How many pieces of recordings may run now: what live sessions leave."""
        if any(not step.dropped for *_, step in self._urgent):
            return 0
        return max(1, self._options.max_recorded - sum(self._running.values()))

    def _next_deadline(self, now: float) -> float | None:
        """Return when the loop must look again though nothing happens; `now` is when it looked at the partials."""
        deadlines = [self._deadline(step) for step in (*(step for *_, step in self._urgent), *self._recorded)]
        if self.is_open and self._running[StepKind.PARTIAL] < self._slots.slots:
            due = next_due(self._waiting.values(), now)
            deadlines += [] if due is None else [due]
        return min(deadlines, default=None)

    @property
    def _urgent_running(self) -> int:
        return self._running[StepKind.FINAL] + self._running[StepKind.CANDIDATE]

    # Steps

    def _begin(self, step: Step, engine: Engine) -> None:
        decode, piece = step.decode, step.piece
        now = step.began_at = self._clock()
        waited_s = max(0.0, now - step.queued_at)
        self._metrics.decode_queue_seconds.labels(step.label).observe(waited_s)
        if decode.kind is StepKind.FINAL and not step.recorded:
            waited_s = min(waited_s, now - self._ready_at)  # an engine that was not there is no crowd
            self._slots.final_waited(waited_s, now)
            self._crowding.final_waited(step.lane, waited_s, now)
        if piece.stream is None:
            opened = open_stream(engine, decode, step.lane.number)
            if isinstance(opened, DecodeFailed):
                self._answer(step, opened)
                return
            piece.stream = opened
        if step.recorded:
            self._recorded_began_at = now
            step.lane.last_turn = next(self._order)
        self._count(step, 1)
        timeout_s = self._options.recorded_timeout_s if step.recorded else self._options.step_timeout_s
        step.task = self._group.create_task(perform_step(piece.stream, decode, timeout_s))
        step.task.add_done_callback(lambda task: self._ended(step, task))

    def _ended(self, step: Step, task: asyncio.Task[Outcome]) -> None:
        self._count(step, -1)
        self._wake.set()
        if task.cancelled():
            if step.dropped:  # else the scheduler itself was cancelled, and can start nothing more
                self._close(step.piece)
            return
        outcome = task.result()
        self._note_service(step, outcome)
        if isinstance(outcome, DecodeFailed) and isinstance(outcome.error, EngineCrashed):
            self.on_crash()
        if step.dropped or not leaves_stream_usable(outcome):
            self._close(step.piece)
        self._answer(step, outcome)

    def _count(self, step: Step, change: int) -> None:
        if step.recorded:
            self._recorded_running += change
        else:
            self._running[step.decode.kind] += change

    def _note_service(self, step: Step, outcome: Outcome) -> None:
        now = self._clock()
        service_s, kind = now - step.began_at, step.decode.kind
        self._metrics.decode_seconds.labels(step.label).observe(service_s)
        if isinstance(outcome, Skipped):
            self._metrics.partials_skipped.inc()
        elif kind is StepKind.PARTIAL:
            self._slots.partial_served(service_s, now)

    def _answer(self, step: Step, outcome: Outcome) -> None:
        if step.dropped:
            self._metrics.stale_outcomes.inc()
            return
        step.piece.step = None
        if isinstance(outcome, Heard) and outcome.kind is not StepKind.FINAL:
            self._crowding.heard(step.lane, self._clock())
        step.lane.source.deliver(outcome)

    def _close(self, piece: Piece) -> None:
        stream, piece.stream = piece.stream, None
        if stream is not None and not self._dead:
            self._closing += 1
            self._group.create_task(close_stream(stream, self._options.close_timeout_s)).add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing -= 1
        self._wake.set()


def _failed(step: Step, error: AsrServerError) -> DecodeFailed:
    return DecodeFailed(step.decode.piece, step.decode.kind, error)
