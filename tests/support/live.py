"""A live session in virtual time: real machine, scheduler and decoder, a detector that answers at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen3_asr_server.domain import SAMPLE_RATE, SessionConfig
from qwen3_asr_server.engines._base import Engine
from qwen3_asr_server.errors import EngineNotReady
from qwen3_asr_server.messages import AppendBytes, Event
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.live import LiveOptions, LiveSession, Workers
from qwen3_asr_server.runtime.scheduler import SchedulerOptions, StepScheduler
from qwen3_asr_server.runtime.telemetry import Latencies
from qwen3_asr_server.session.options import SessionOptions
from support.clock import clock
from support.energy_vad import EnergyVad

PACKET_S = 0.1


@dataclass
class DirectVad:
    """What sessions need of a `VadBatcher`, without its thread."""

    score_s: float = 0.0
    failure: Exception | None = None
    open_streams: int = 0
    model: EnergyVad = field(default_factory=EnergyVad)

    def open(self) -> "DirectVadStream":
        self.open_streams += 1
        return DirectVadStream(self)


@dataclass
class DirectVadStream:
    batcher: DirectVad
    closed: bool = False
    resets: int = 0
    asked: "asyncio.Future[Any] | None" = None

    def submit(self, frames: Any, deliver: Callable[[Any], None]) -> None:
        assert not self.closed
        states = np.zeros((len(frames), 1), np.float32)
        answer = self.batcher.failure or self.batcher.model.score(frames, states)[0]
        asyncio.get_running_loop().call_later(self.batcher.score_s, self._deliver, deliver, answer)

    async def score(self, frames: Any) -> Any:
        self.asked = asyncio.get_running_loop().create_future()
        self.submit(frames, self.asked.set_result)
        scored = await self.asked
        if isinstance(scored, Exception):
            raise scored
        return scored

    def _deliver(self, deliver: Callable[[Any], None], answer: Any) -> None:
        if not self.closed:
            deliver(answer)

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.batcher.open_streams -= 1
            if self.asked is not None and not self.asked.done():
                self.asked.set_result(EngineNotReady("closed"))


@dataclass
class Stage:
    """A session and what surrounds it."""

    live: LiveSession
    events: list[Event]
    metrics: Metrics
    vad: DirectVad
    scheduler: StepScheduler
    running: "asyncio.Task[None]"

    def of(self, *kinds: type[Event]) -> list[Any]:
        """Return the events of some types."""
        return [event for event in self.events if isinstance(event, kinds)]

    async def speak(self, *parts: tuple[float, float], paced: bool = True) -> None:
        """Append `(seconds, loudness)` stretches in 100 ms packets."""
        pcm = b"".join(sound(seconds, loudness) for seconds, loudness in parts)
        size = round(PACKET_S * SAMPLE_RATE) * 2
        for start in range(0, len(pcm), size):
            if paced:
                await asyncio.sleep(PACKET_S)
            await self.live.submit(AppendBytes(pcm[start : start + size]))

    def value(self, name: str, **labels: str) -> float:
        """Return a metric's sample."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def sound(seconds: float, loudness: float) -> bytes:
    """Return pcm16 at 16 kHz of constant loudness, 0 to 1."""
    return np.full(round(seconds * SAMPLE_RATE), loudness * 32767, "<i2").tobytes()


@asynccontextmanager
async def staged(
    engine: Engine,
    config: SessionConfig | None = None,
    *,
    vad: DirectVad | None = None,
    emit: Any = None,
    session: SessionOptions | None = None,
    scheduling: SchedulerOptions | None = None,
    **options: Any,
) -> AsyncIterator[Stage]:
    """Run a session; afterwards it is over, holds nothing, and no task is left."""
    await engine.start()
    metrics, vad, events = Metrics(), vad or DirectVad(), list[Event]()
    scheduler = StepScheduler(scheduling or SchedulerOptions(), metrics, clock)
    scheduler.start()
    scheduler.engine_ready(engine)
    workers: Any = Workers(vad, scheduler, metrics, Latencies(), clock)  # type: ignore[arg-type]
    limits = LiveOptions(session or SessionOptions(), **options)
    live = LiveSession(config or SessionConfig(), limits, workers, emit or events.append)
    running = asyncio.create_task(live.run())
    try:
        yield Stage(live, events, metrics, vad, scheduler, running)
    finally:
        live.end("test")
        await asyncio.wait({running}, timeout=60)
        assert running.done()
        assert vad.open_streams == 0
        await scheduler.stop()
        assert not any(scheduler.stats()[name] for name in ("finals_running", "partials_running", "open_streams"))
        assert asyncio.all_tasks() == {asyncio.current_task()}
