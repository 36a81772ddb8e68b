"""A scripted engine and sessions for tests of the step scheduler: every step is seen, held and let go."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.messages import Decode, DecodeFailed, Heard, Lost, Outcome, Skipped
from qwen3_asr_server.runtime.lanes import Lane
from qwen3_asr_server.session.recognition import Offer


@dataclass
class HeldEngine:
    """Steps take `step_s`, or what `on_step` does; streams count themselves."""

    step_s: float = 0.1
    close_s: float = 0.0
    on_step: Callable[[StepKind], object] | None = None
    running: list[StepKind] = field(default_factory=list)
    most: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    begun: dict[StepKind, asyncio.Event] = field(default_factory=lambda: {kind: asyncio.Event() for kind in StepKind})
    opened: int = 0
    closed: int = 0
    sessions: list[int | None] = field(default_factory=list)
    """Whose the streams were."""

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("held", "none", "For tests.", frozenset({"en"}), "en", production=False)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def open_stream(self, options: StreamOptions) -> "HeldStream":
        self.opened += 1
        self.sessions.append(options.session)
        return HeldStream(self)


@dataclass
class HeldStream:
    engine: HeldEngine
    closed: bool = False

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        assert not self.closed
        engine = self.engine
        engine.begun[kind].set()
        engine.running.append(kind)
        engine.most[kind] = max(engine.most[kind], engine.running.count(kind))
        try:
            await asyncio.sleep(engine.step_s)
            answer = engine.on_step(kind) if engine.on_step else Hypothesis("text")
            return answer if isinstance(answer, Hypothesis) else None
        finally:
            engine.running.remove(kind)

    async def close(self) -> None:
        assert not self.closed, "a stream is closed once"
        self.closed = True
        await asyncio.sleep(self.engine.close_s)
        self.engine.closed += 1


@dataclass
class Speaker:
    """A session that speaks without end: an offer every `floor_s` after the last step."""

    name: int
    now: Callable[[], float]
    floor_s: float = 0.4
    speaking: bool = True
    last_step: float = 0.0
    lane: Lane | None = None
    pulls: list[float] = field(default_factory=list)
    outcomes: list[Heard | Skipped | DecodeFailed | Lost] = field(default_factory=list)
    running: bool = False

    def offer(self) -> Offer | None:
        if not self.speaking or self.running:
            return None
        return Offer(0, 0, 0.5, self.last_step, self.last_step + self.floor_s)

    def pull(self, now: float) -> Decode | None:
        if self.offer() is None:
            return None
        self.pulls.append(now)
        self.last_step, self.running = now, True
        return decode(StepKind.PARTIAL, piece=0)

    def deliver(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Heard | Skipped | DecodeFailed | Lost)
        self.outcomes.append(outcome)
        self.running = self.running and outcome.piece != 0
        assert self.lane is not None
        self.lane.notify()


def decode(kind: StepKind, piece: int, seconds: float = 1.0) -> Decode:
    """Return a decode of some silence."""
    samples = round(seconds * 16000)
    return Decode(0, piece, kind, 0, samples, np.zeros(samples, np.float32), StreamOptions())
