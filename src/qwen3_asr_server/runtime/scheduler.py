"""The owner of the engine: the one narrow interface between sessions and recognition.

A session attaches and gets a `Lane`. Through it the session hands in finals and candidates, which run as soon
as the engine has room for them, finals first; and it *offers* partials, which the scheduler *pulls*:
whenever a slot is free, from the session that has waited longest. What passes through a lane (`Decode`,
release, an offer; back a pull and an `Outcome`) is plain values, so that gateways and the engine's owner
can become separate processes with a socket in between; today they call each other directly.

A stream is opened with the first step of a piece and closed at its release, or when a step was cut off; the
next step, having all audio, then opens another. A piece has at most one step at a time.

It knows no sessions beyond `StepSource`, no protocols, no VAD. Built by the services.
"""

import asyncio
import heapq
import itertools
import logging
from dataclasses import dataclass
from typing import Protocol

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._base import Engine, EngineStream
from qwen3_asr_server.errors import AsrServerError, EngineError, EngineTimeout
from qwen3_asr_server.messages import Decode, DecodeFailed, Outcome, Skipped
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.alarm import Alarm, Clock
from qwen3_asr_server.runtime.slots import Crowding, PartialSlots, Waiting, choose, next_due
from qwen3_asr_server.runtime.steps import close_stream, leaves_stream_usable, open_stream, perform_step
from qwen3_asr_server.session.recognition import Offer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Bounds of the scheduler."""

    max_partials: int = 32
    """Partials at once, at most; how many it is now follows the measured service time."""
    max_urgent: int = 32
    """Finals and candidates at once; more wait."""
    longest_interval_s: float = 2.0
    """Interval between a speaking session's partials above which no more sessions should come."""
    step_timeout_s: float = 63.0
    """Longest step with its waits inside the engine, besides half of its audio's length. Engines keep the
    deadlines of their own work themselves; this one is for an engine that does not come back."""
    queue_timeout_s: float = 60.0
    """Longest wait of a final or candidate for its turn."""
    close_timeout_s: float = 5.0
    """Longest wait for a stream to give its resources back."""


class StepSource(Protocol):
    """A session, as the scheduler sees it. Called on the event loop; does not raise."""

    def offer(self) -> Offer | None:
        """Return the partial that is worth decoding, if any."""
        ...

    def pull(self, now: float) -> Decode | None:
        """Take the offered partial as a job."""
        ...

    def deliver(self, outcome: Outcome) -> None:
        """Take in the answer to a `Decode`."""
        ...


class Lane:
    """A session's way to the engine."""

    def __init__(self, scheduler: "StepScheduler", source: StepSource) -> None:
        self._scheduler = scheduler
        self.source = source
        self.pieces: dict[int, _Piece] = {}

    def notify(self) -> None:
        """Say that the source's offer may have changed."""
        self._scheduler._offered(self)

    def submit(self, decode: Decode) -> None:
        """Queue a final or candidate; its outcome is delivered to the source."""
        self._scheduler._queue(self, decode)

    def release(self, piece: int) -> None:
        """Give up a piece: what waits or runs for it is dropped, its stream is closed."""
        held = self.pieces.pop(piece, None)
        if held is not None:
            self._scheduler._drop(held)

    def detach(self) -> None:
        """Leave: releases everything; nothing is delivered afterwards."""
        for piece in list(self.pieces):
            self.release(piece)
        self._scheduler._forget(self)


@dataclass(slots=True, eq=False)
class _Piece:
    """What the scheduler holds for a piece that was not released yet."""

    stream: EngineStream | None = None
    step: "_Step | None" = None


@dataclass(slots=True, eq=False)
class _Step:
    """A decode that waits or runs."""

    lane: Lane
    piece: _Piece
    decode: Decode
    queued_at: float
    began_at: float = 0.0
    task: asyncio.Task[Outcome] | None = None
    dropped: bool = False
    """The piece was released meanwhile."""


class StepScheduler:
    """Run steps of all sessions on one engine.

    Args:
        engine: shared by all lanes. It may still be loading: steps wait until `engine_ready`.
        options: bounds.
        metrics: where waits, services and slots are noted.
        clock: seconds, monotonic.
    """

    def __init__(self, engine: Engine, options: SchedulerOptions, metrics: Metrics, clock: Clock) -> None:
        self._engine = engine
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._slots = PartialSlots(options.max_partials, clock())
        self._crowding = Crowding(options.longest_interval_s)
        self._lanes: set[Lane] = set()
        self._waiting: dict[Lane, Waiting[Lane]] = {}
        self._urgent: list[tuple[int, int, _Step]] = []
        self._order = itertools.count()
        self._running = dict.fromkeys(StepKind, 0)
        self._closing = 0
        self._open = False
        self._failure: EngineError | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._alarm = Alarm(clock, self._wake.set)
        self._runner: asyncio.Task[None] | None = None
        metrics.partial_slots.set_function(lambda: self._slots.slots)

    def start(self) -> None:
        """Begin to serve lanes; steps wait for `engine_ready`."""
        self._runner = asyncio.create_task(self._run(), name="step scheduler")

    def engine_ready(self) -> None:
        """Say that the engine has started."""
        self._open, self._failure = True, None
        self._wake.set()

    @property
    def is_open(self) -> bool:
        """Whether the engine has started and steps run."""
        return self._open

    @property
    def crowded(self) -> bool:
        """Whether more sessions would make partials rarer than promised."""
        return self._crowding.crowded(self._clock())

    def engine_failed(self, error: EngineError) -> None:
        """Say that the engine could not start: what waits, and what comes, fails with `error`."""
        self._open, self._failure = False, error
        self._wake.set()

    async def stop(self) -> None:
        """Drop everything and close all streams, within a deadline."""
        self._stopping = True
        self._wake.set()
        runner, self._runner = self._runner, None
        if runner is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(runner), 2 * self._options.close_timeout_s)
        except TimeoutError:
            _log.error("streams did not close in time")
            runner.cancel()

    def attach(self, source: StepSource) -> Lane:
        """Let a session in."""
        lane = Lane(self, source)
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
            "open_streams": sum(piece.stream is not None for lane in self._lanes for piece in lane.pieces.values()),
        }

    # What lanes call

    def _offered(self, lane: Lane) -> None:
        offer = lane.source.offer() if lane in self._lanes else None
        before = self._waiting.pop(lane, None)
        if offer is None:
            return
        now = self._clock()
        self._waiting[lane] = Waiting(lane, offer.last_step, offer.due, before.offered if before else now)
        if self._running[StepKind.PARTIAL] < self._slots.slots:
            if offer.due <= now:
                self._wake.set()
            else:
                self._alarm.set(offer.due)

    def _queue(self, lane: Lane, decode: Decode) -> None:
        step = self._new_step(lane, decode, self._clock())
        heapq.heappush(self._urgent, (decode.kind, next(self._order), step))
        self._wake.set()

    def _new_step(self, lane: Lane, decode: Decode, queued_at: float) -> _Step:
        piece = lane.pieces.setdefault(decode.piece, _Piece())
        assert piece.step is None, "the machine asks for one decode of a piece at a time"
        piece.step = _Step(lane, piece, decode, queued_at)
        return piece.step

    def _drop(self, piece: _Piece) -> None:
        step, piece.step = piece.step, None
        if step is not None:
            step.dropped = True
        if step is not None and step.task is not None:
            step.task.cancel()  # `_ended` closes the stream, when the step has let go of it
        else:
            self._close(piece)

    def _forget(self, lane: Lane) -> None:
        self._lanes.discard(lane)
        self._waiting.pop(lane, None)

    # The loop

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                self._expire()
                if self._open:
                    self._serve_urgent()
                    self._serve_partials()
                self._alarm.set(self._next_deadline())
            self._alarm.cancel()
            for lane in list(self._lanes):
                lane.detach()
            while self._closing or any(self._running.values()):
                self._wake.clear()
                await self._wake.wait()

    def _expire(self) -> None:
        """Fail what waited for too long, or waits for an engine that did not start."""
        oldest = self._clock() - self._options.queue_timeout_s
        queue, self._urgent = self._urgent, []
        for entry in queue:
            step = entry[-1]
            if step.dropped:
                continue
            if self._failure is not None:
                self._answer(step, _failed(step, self._failure))
            elif step.queued_at <= oldest:
                self._answer(step, _failed(step, EngineTimeout("The recogniser had no time for this utterance.")))
            else:
                self._urgent.append(entry)
        heapq.heapify(self._urgent)

    def _serve_urgent(self) -> None:
        while self._urgent and self._urgent_running < self._options.max_urgent:
            step = heapq.heappop(self._urgent)[-1]
            if not step.dropped:
                self._begin(step)

    def _serve_partials(self) -> None:
        now = self._clock()
        for chosen in choose(self._waiting.values(), now, self._slots.slots - self._running[StepKind.PARTIAL]):
            del self._waiting[chosen.lane]
            decode = chosen.lane.source.pull(now)
            if decode is not None:
                self._begin(self._new_step(chosen.lane, decode, max(chosen.due, chosen.offered)))

    def _next_deadline(self) -> float | None:
        """Return when the loop must look again though nothing happens."""
        deadlines = [step.queued_at + self._options.queue_timeout_s for *_, step in self._urgent]
        if self._open and self._running[StepKind.PARTIAL] < self._slots.slots:
            due = next_due(self._waiting.values(), self._clock())
            deadlines += [] if due is None else [due]
        return min(deadlines, default=None)

    @property
    def _urgent_running(self) -> int:
        return self._running[StepKind.FINAL] + self._running[StepKind.CANDIDATE]

    # Steps

    def _begin(self, step: _Step) -> None:
        decode, piece = step.decode, step.piece
        now = step.began_at = self._clock()
        waited_s = max(0.0, now - step.queued_at)
        self._metrics.decode_queue_seconds.labels(decode.kind.name.lower()).observe(waited_s)
        if decode.kind is StepKind.FINAL:
            self._slots.final_waited(waited_s, now)
        elif decode.kind is StepKind.PARTIAL:
            self._crowding.partial_waited(waited_s, now)
        if piece.stream is None:
            opened = open_stream(self._engine, decode)
            if isinstance(opened, DecodeFailed):
                self._answer(step, opened)
                return
            piece.stream = opened
        self._running[decode.kind] += 1
        step.task = self._group.create_task(perform_step(piece.stream, decode, self._options.step_timeout_s))
        step.task.add_done_callback(lambda task: self._ended(step, task))

    def _ended(self, step: _Step, task: asyncio.Task[Outcome]) -> None:
        self._running[step.decode.kind] -= 1
        self._wake.set()
        if task.cancelled():
            if step.dropped:  # else the scheduler itself was cancelled, and can start nothing more
                self._close(step.piece)
            return
        outcome = task.result()
        self._note_service(step, outcome)
        if step.dropped or not leaves_stream_usable(outcome):
            self._close(step.piece)
        self._answer(step, outcome)

    def _note_service(self, step: _Step, outcome: Outcome) -> None:
        now = self._clock()
        service_s, kind = now - step.began_at, step.decode.kind
        self._metrics.decode_seconds.labels(kind.name.lower()).observe(service_s)
        if isinstance(outcome, Skipped):
            self._metrics.partials_skipped.inc()
        elif kind is StepKind.PARTIAL:
            self._slots.partial_served(service_s, now)

    def _answer(self, step: _Step, outcome: Outcome) -> None:
        if step.dropped:
            self._metrics.stale_outcomes.inc()
            return
        step.piece.step = None
        step.lane.source.deliver(outcome)

    def _close(self, piece: _Piece) -> None:
        stream, piece.stream = piece.stream, None
        if stream is not None:
            self._closing += 1
            self._group.create_task(close_stream(stream, self._options.close_timeout_s)).add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing -= 1
        self._wake.set()


def _failed(step: _Step, error: AsrServerError) -> DecodeFailed:
    return DecodeFailed(step.decode.piece, step.decode.kind, error)
