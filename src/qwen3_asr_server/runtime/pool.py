"""The engine's life: which model is loaded, and when it is started, watched, restarted and unloaded.

    unloaded ──▶ loading ──▶ ready ──▶ unloading ──▶ unloaded
        ▲           │          │ ▲
        └─ failed ◀─┘     died ▼ │
                           restarting ⟲

A load that is given up is unloading, too. At most one engine is started at a time. Sessions lease a model, which makes
it *wanted*; an operator or time may make it unwanted while nobody has a lease. One task, `_run`, brings about what is
wanted, one transition after the other, and looks anew after each: so whatever is asked for in mid-transition has its
effect after it, and nothing overlaps. A companion, the forced aligner, comes before an engine and goes after it; it
survives only the engine's death.

Tells the step scheduler whether there is an engine. Knows no settings and no sessions; called by the services.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from qwen3_asr_server.engines._base import Counting, Engine, Mortal
from qwen3_asr_server.errors import EngineCrashed, EngineError, EngineNotReady
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.alarm import Clock
from qwen3_asr_server.runtime.backoff import Backoff
from qwen3_asr_server.runtime.changes import Changes
from qwen3_asr_server.runtime.leases import Leases

_log = logging.getLogger(__name__)

Phase = Literal["unloaded", "loading", "ready", "restarting", "unloading", "failed"]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Times of the pool, in seconds."""

    idle_unload_s: float = 0.0
    """An engine that nobody has leased for this long is unloaded; 0 keeps it."""
    switch_timeout_s: float = 30.0
    """Longest wait of a client for another model's leases to end."""
    watch_s: float = 1.0
    """Interval of looking whether the engine lives."""
    stop_timeout_s: float = 60.0
    """Longest stop of an engine; then it is left to itself."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What the pool is about."""

    phase: Phase
    model: str | None
    """The one that is loaded, or comes or goes; None when there is none."""
    since_s: float
    """For how long this has been so."""
    attempt: int
    """Number of the start that runs or comes next, from 1; 0 when none is due."""
    last_error: str | None
    """Why the latest start failed; None once one has succeeded."""
    leases: int


class EngineUser(Protocol):
    """The step scheduler, as the pool sees it."""

    def engine_ready(self, engine: Engine) -> None:
        """Use this engine from now on."""
        ...

    def engine_gone(self, error: EngineError) -> None:
        """Use no engine; what it had begun is lost, everything else waits for the next."""
        ...

    def engine_failed(self, error: EngineError) -> None:
        """Wait for no engine: there will be none for now."""
        ...


class Companion(Protocol):
    """What is started before an engine and stopped after it."""

    async def start(self) -> None:
        """Be there; does nothing where it is already.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        ...

    async def stop(self) -> None:
        """Release everything. Safe to call twice, or without `start`."""
        ...


class Pool:
    """Keep at most one of several engines started.

    Args:
        engines: one for each model, by its name; the first is the default.
        options: times.
        metrics: where starts and deaths are noted.
        clock: seconds, monotonic, at the rate of the event loop's clock.
        on_death: called when the pool itself has failed: no engine would be started any more.
        companion: of whichever engine is started; how much memory that may have depends on it.

    Attributes:
        leases: who uses what is loaded. `lease` is the way to get one.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        options: PoolOptions,
        metrics: Metrics,
        clock: Clock,
        on_death: Callable[[], None] = lambda: None,
        companion: Companion | None = None,
    ) -> None:
        self._engines = dict(engines)
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._on_death = on_death
        self._companion = companion
        self._user: EngineUser | None = None
        self._runner: asyncio.Task[None] | None = None
        self._changes = Changes()
        self._stopping = False
        self._wanted: str | None = None
        self._held: str | None = None
        """Whose engine is started, or being started or stopped."""
        self._unloads = 0
        """How often an engine, or what there was of one, was stopped."""
        self._lost = False
        self._backoff = Backoff()
        self._retry_at = clock()
        self._failure: EngineError | None = None
        self._phase: Phase = "unloaded"
        self._phase_since = clock()
        self.leases = Leases(self._changes, options.switch_timeout_s, clock)
        metrics.engine_up.set_function(lambda: float(self._phase == "ready"))
        metrics.count_engine(self.stats)

    # What the services call

    def start(self, user: EngineUser) -> None:
        """Begin to bring about what is wanted: nothing, as yet."""
        self._user = user
        self._runner = asyncio.create_task(self._run(user), name="engine pool")
        self._runner.add_done_callback(self._ran)

    async def load(self) -> None:
        """Load the default model.

        Raises:
            EngineError: with a reason a user can act upon.
        """
        self._want(next(iter(self._engines)))
        await self._changes.until(lambda: self._phase in ("ready", "failed") or self._stopping)
        if self._failure is not None:
            raise self._failure

    async def loaded(self) -> None:
        """Wait until what is leased is loaded, or the pool stops.

        Raises:
            EngineError: it could not be loaded.
        """
        await self._changes.until(lambda: self._stopping or self._wanted is None or self._at_hand)
        if self._phase == "failed" and self._failure is not None:
            raise self._failure

    @contextmanager
    def lease(self, model: str) -> Iterator[None]:
        """Keep a model for the length of the `with` block; it is loaded if it is not, and another is unloaded first.

        Raises:
            Refused: another model is leased.
        """
        with self.leases.hold(model):
            self._want(model)
            yield

    async def release(self) -> bool:
        """Unload what is loaded, or give up loading it; whoever comes next loads it again.

        Returns:
            Whether anything was: there may be nothing, or somebody may want it again just in time.

        Raises:
            Refused: somebody has a lease.
        """
        if self.leases.count:
            raise Refused("The model is in use.", reason="model_in_use")
        held, before = self._held, self._unloads
        if held is None and self._wanted is None:
            return False
        self._wanted = None
        self._changes.tell()
        await self._changes.until(lambda: self._unloads != before or self._held is None or self._kept)
        return held is None or self._unloads != before

    def look(self) -> None:
        """Look whether the engine has died. A step that has crashed is a reason to call it at once."""
        engine = self._engines[self._held] if self._held is not None and self._phase == "ready" else None
        if self._user is None or not isinstance(engine, Mortal) or not engine.dead:
            return
        now = self._clock()
        self._lost = True
        self._retry_at = now + self._backoff.failed(now)
        self._metrics.engine_deaths.inc()
        _log.error("the engine has died", extra={"model": self._held, "attempt": self._backoff.attempt})
        self._enter("restarting")
        self._user.engine_gone(EngineCrashed("The recogniser died during this utterance."))

    def status(self) -> PoolStatus:
        """Return what the pool is about."""
        attempt = {"loading": 1, "restarting": self._backoff.attempt}.get(self._phase, 0)
        since_s = self._clock() - self._phase_since
        error = self._failure.message if self._failure is not None else None
        return PoolStatus(self._phase, self._held or self._wanted, since_s, attempt, error, self.leases.count)

    def stats(self) -> Mapping[str, int | float]:
        """Return what the engine has counted since it started; empty for one that does not count."""
        engine = self._engines[self._held] if self._held is not None and self._phase == "ready" else None
        return engine.stats() if isinstance(engine, Counting) else {}

    async def stop(self) -> None:
        """Stop what is started, whoever has a lease. Safe to call twice, or without `start`."""
        self._stopping, self._wanted = True, None
        self.leases.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.wait({runner}, timeout=2 * self._options.stop_timeout_s)
            runner.cancel()
        if self._held is not None:  # the task has failed, or was given up
            await self._stop(self._engines[self._held])
        await self._dismiss()

    @property
    def _at_hand(self) -> bool:
        """Whether what is wanted is started."""
        return self._phase == "ready" and self._held == self._wanted

    @property
    def _kept(self) -> bool:
        """Whether what is held, or comes, is wanted and not going away in spite of that."""
        return self._wanted is not None and self._phase != "unloading"

    def _want(self, model: str) -> None:
        if not self._stopping and self._wanted != model:
            self._wanted = model
            self._changes.tell()

    # The one task

    async def _run(self, user: EngineUser) -> None:
        while self._held is not None or not self._stopping:
            if self._held is None and self._wanted is None:
                await self._changes.until(lambda: self._wanted is not None or self._stopping)
            elif self._held is None and self._wanted is not None:
                await self._load(self._wanted, user)
            elif self._held is not None and (self._held != self._wanted or self._lost):
                await self._unload(self._held, user)
            else:
                await self._watch()

    def _ran(self, runner: asyncio.Task[None]) -> None:
        error = None if runner.cancelled() else runner.exception()
        if error is not None:
            _log.error("the engine pool has failed", exc_info=error)
            self._on_death()

    async def _load(self, model: str, user: EngineUser) -> None:
        if self._backoff.attempt:
            await self._changes.until_or(lambda: self._wanted != model, self._retry_at - self._clock())
            if self._wanted != model:
                await self._rest()
                return
        else:
            user.engine_gone(EngineNotReady("The engine is loading."))  # there is hope again, after a failure
        self._held = model
        self._enter("restarting" if self._backoff.attempt else "loading")
        began = self._clock()
        engine = self._engines[model]
        started, error = await self._start_while_wanted(engine, model)
        if not started:
            await self._stop(engine)
            self._held = None
            self._unloads += 1
            await self._not_started(model, error, user)
            return
        now = self._clock()
        self._metrics.engine_load_seconds.observe(now - began)
        self._failure = None
        self._backoff.runs(now)
        self.leases.idle_since = now
        self._enter("ready")
        user.engine_ready(engine)

    async def _start_while_wanted(self, engine: Engine, model: str) -> tuple[bool, EngineError | None]:
        """Start an engine, or give up as soon as something else is wanted; tell whether it runs, and if not, why."""
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(self._start(engine))
            starting.add_done_callback(lambda _: self._changes.tell())
            await self._changes.until(lambda: starting.done() or self._wanted != model)
            if not starting.done():
                self._enter("unloading")
                starting.cancel()
        if starting.cancelled():
            return False, None
        error = starting.result()
        return error is None, error

    async def _not_started(self, model: str, error: EngineError | None, user: EngineUser) -> None:
        if error is None or self._wanted != model:
            await self._rest()
            return
        await self._dismiss()
        self._failure = error
        if self._backoff.attempt:
            now = self._clock()
            self._retry_at = now + self._backoff.failed(now)
            self._enter("restarting")
        else:
            self._wanted = None
            self._enter("failed")
            user.engine_failed(error)

    async def _unload(self, model: str, user: EngineUser) -> None:
        restart = self._lost
        if not restart:
            self._enter("unloading")
            user.engine_gone(EngineNotReady("The model was unloaded."))
        await self._stop(self._engines[model])
        self._held, self._lost = None, False
        self._unloads += 1
        if restart and self._wanted == model:
            self._changes.tell()
        else:
            await self._rest()

    async def _watch(self) -> None:
        await self._changes.until_or(lambda: self._held != self._wanted or self._lost, self._options.watch_s)
        self.look()
        limit_s = self._options.idle_unload_s
        if limit_s and not self.leases.count and self._clock() - self.leases.idle_since >= limit_s:
            _log.info("the engine is unloaded, as nobody uses it", extra={"model": self._held})
            self._wanted = None

    async def _start(self, engine: Engine) -> EngineError | None:
        """Start an engine; return why it did not."""
        try:
            if self._companion is not None:
                await self._companion.start()
            await engine.start()
        except EngineError as error:
            _log.error("the engine could not be loaded: %s", error.message)
            return error
        except Exception:  # noqa: BLE001 - the boundary to engines
            _log.exception("the engine could not be loaded")
            return EngineNotReady("The engine could not be loaded.")
        return None

    async def _stop(self, ending: Engine | Companion) -> None:
        try:
            async with asyncio.timeout(self._options.stop_timeout_s):
                await ending.stop()
        except Exception:  # noqa: BLE001 - the boundary to engines
            _log.exception("an engine did not stop as it should")

    async def _dismiss(self) -> None:
        if self._companion is not None:
            await self._stop(self._companion)

    async def _rest(self) -> None:
        """Have no engine, no companion, and no failure to make good."""
        await self._dismiss()
        self._backoff.forget()
        self._enter("unloaded")

    def _enter(self, phase: Phase) -> None:
        if phase != self._phase:
            self._phase, self._phase_since = phase, self._clock()
        self._changes.tell()
