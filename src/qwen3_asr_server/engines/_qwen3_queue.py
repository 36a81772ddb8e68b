"""Steps that wait for one blocking model, and the thread that carries them out, several at a time.

Finals go before candidates before partials, and steps of recordings last; within a class the earliest first. So that
partials, which never end, leave recordings a turn, one of their steps goes before partials now and then. A step that
is given up while it waits is never carried out; one that runs is told so, and the model leaves it at its next token.
The queue is bounded, and waiting and working have their deadlines. Knows no model and no text; the engines
`transformers` and `qwen_asr` put their streams' steps here.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from qwen3_asr_server.domain import SAMPLE_RATE, Samples, StepKind
from qwen3_asr_server.errors import EngineError, EngineNotReady, EngineTimeout

_log = logging.getLogger(__name__)

MAX_WAITING: Final = 128
"""The scheduler has at most 32 steps of each sort under way; more are those of sessions that have gone."""
RECORDED_AFTER_S: Final = 30.0
"""A step of a recording that has waited for so long, as have all others of them, goes before the partials that wait:
of the 16 that the scheduler has under way at most, the last has its turn before its ten minutes are over."""
STOP_S: Final = 10.0
"""Longest wait for the model to leave its work: the length of one token, or of reading one long prompt."""


@dataclass(slots=True, eq=False)
class Decode:
    """One greedy decode that somebody wants."""

    kind: StepKind
    audio: Samples
    """float32 [n], mono, 16 kHz: the whole piece so far."""
    language: str | None
    """Wire code that is forced, or None."""
    context: str
    """As the client wrote it."""
    prefix: tuple[int, ...]
    """The beginning of the answer, taken as given."""
    max_tokens: int
    recorded: bool = False
    """It is for a recording, and makes way for live sessions."""
    abandoned: bool = False
    """Nobody waits for it any more. Set on the event loop, read by the thread."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a decode gave."""

    ids: tuple[int, ...]
    """New tokens, without the one that ends the text."""
    complete: bool
    """The model ended the text; otherwise it was not allowed more tokens."""
    chances: tuple[float, ...] = ()
    """The model's probability of each id; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How much is done at once, and for how long."""

    max_batch: int
    decode_timeout_s: float
    """For the work of one batch, besides half of its longest audio."""
    queue_timeout_s: float
    """For the wait before it; for steps of recordings whoever asks keeps the deadline."""


@dataclass(slots=True, eq=False)
class _Ticket:
    wanted: Decode
    number: int
    queued_at: float
    started: asyncio.Future[float] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Gives the time limit of the work, in seconds."""
    answer: asyncio.Future[Written] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: EngineError) -> None:
        """Tell whoever waits, at whatever he waits for."""
        self.wanted.abandoned = True
        for future in (self.answer,) if self.started.done() else (self.started,):
            if not future.done():
                future.set_exception(error)


class StepQueue:
    """The queue in front of one model. All methods belong to the event loop.

    Args:
        run: carries out a batch and returns an answer for each; blocks, is called in a thread, never twice at once.
        options: see there.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Decode]], Sequence[Written]],
        options: QueueOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._options = options
        self._clock = clock
        self._recorded_at = clock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qwen3-asr")
        self._numbers = itertools.count()
        self._waiting: list[_Ticket] = []
        self._running: list[_Ticket] = []
        self._job: asyncio.Future[Sequence[Written]] | None = None
        self._open = True
        self.batches = 0

    async def decode(self, wanted: Decode) -> Written | None:
        """Wait for a turn and carry one decode out.

        Returns:
            None for a PARTIAL or CANDIDATE when too many wait.

        Raises:
            EngineTimeout: no turn came, or the work took too long.
            EngineNotReady: stopped.
            EngineError: the model failed.
        """
        if not self._open:
            raise EngineNotReady("the engine is not running")
        if len(self._waiting) >= MAX_WAITING:
            if wanted.kind is not StepKind.FINAL:
                return None
            raise EngineTimeout("The recogniser has too much to do.")
        ticket = _Ticket(wanted, next(self._numbers), self._clock())
        self._waiting.append(ticket)
        asyncio.get_running_loop().call_soon(self._dispatch)
        try:
            async with asyncio.timeout(None if wanted.recorded else self._options.queue_timeout_s):
                limit_s = await ticket.started
            async with asyncio.timeout(limit_s):
                return await ticket.answer
        except TimeoutError:
            raise EngineTimeout("The recogniser took too long.") from None
        finally:
            wanted.abandoned = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    async def stop(self) -> None:
        """Fail what waits and runs, and wait for the thread to leave its work. Safe to call twice."""
        self._open = False
        for ticket in self._waiting + self._running:
            ticket.fail(EngineNotReady("the engine was stopped"))
        self._waiting.clear()
        if self._job is not None:
            await asyncio.wait({self._job}, timeout=STOP_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Hand the most urgent steps to the thread, if it has nothing to do."""
        if self._running or not self._waiting or not self._open:
            return
        batch = self._running = self._next_batch()
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        longest_s = max(len(ticket.wanted.audio) for ticket in batch) / SAMPLE_RATE
        for ticket in batch:
            if not ticket.started.done():
                ticket.started.set_result(self._options.decode_timeout_s + longest_s / 2)
        self.batches += 1
        wanted = [ticket.wanted for ticket in batch]
        self._job = asyncio.get_running_loop().run_in_executor(self._thread, self._run, wanted)
        self._job.add_done_callback(self._finished)

    def _next_batch(self) -> list[_Ticket]:
        """Return the most urgent steps.

        Live ones and those of recordings are never in one batch: it takes as long as its longest step.
        """
        waiting = sorted(self._waiting, key=lambda ticket: (ticket.wanted.kind, ticket.number))
        live = [ticket for ticket in waiting if not ticket.wanted.recorded]
        recorded = [ticket for ticket in waiting if ticket.wanted.recorded]
        now = self._clock()
        if live and not (live[0].wanted.kind is StepKind.PARTIAL and self._overdue(recorded, now)):
            return live[: self._options.max_batch]
        self._recorded_at = now
        return recorded[: 1 if live else self._options.max_batch]

    def _overdue(self, recorded: Sequence[_Ticket], now: float) -> bool:
        """Tell whether the first of these has waited long enough, and no other had its turn meanwhile."""
        return bool(recorded) and now - max(recorded[0].queued_at, self._recorded_at) >= RECORDED_AFTER_S

    def _finished(self, job: "asyncio.Future[Sequence[Written]]") -> None:
        batch, self._running, self._job = self._running, [], None
        problem = None if job.cancelled() else job.exception()
        if problem is not None:
            _log.error("the model failed", exc_info=problem)
        if job.cancelled() or problem is not None:
            for ticket in batch:
                ticket.fail(EngineError("The recogniser failed."))
        else:
            for ticket, written in zip(batch, job.result(), strict=True):
                if not ticket.answer.done():
                    ticket.answer.set_result(written)
        self._dispatch()
