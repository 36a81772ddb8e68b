"""Engines whose lives are watched: they take time to start and stop, die on demand, and must never overlap."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from qwen3_asr_server.domain import EngineInfo, Hypothesis, Samples, StepKind, StreamOptions
from qwen3_asr_server.engines._base import Engine
from qwen3_asr_server.errors import EngineCrashed, EngineError
from support.fake_engine import FakeEngine, FakeStream


@dataclass
class MortalEngine(FakeEngine):
    """A fake engine that can die as a whole: steps then fail, until it was stopped and started again."""

    dead: bool = False
    name: str = "a"
    start_s: float = 0.0
    stop_s: float = 0.0
    start_failures: deque[Exception] = field(default_factory=deque)
    """The next starts raise these, one each."""
    up: bool = False
    """Something of it may be in memory."""
    starts: int = 0
    on_start: Callable[["MortalEngine"], None] = lambda engine: None
    on_stop: Callable[["MortalEngine"], None] = lambda engine: None

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, model=PurePath(self.options.model_path).name)

    async def start(self) -> None:
        self.on_start(self)
        self.up = True
        self.starts += 1
        await asyncio.sleep(self.start_s)
        if self.start_failures:
            raise self.start_failures.popleft()
        self.dead = False
        await super().start()

    async def stop(self) -> None:
        self.on_stop(self)
        self.running = self.dead = False
        await asyncio.sleep(self.stop_s)
        self.up = False

    def open_stream(self, options: StreamOptions) -> "MortalStream":
        super().open_stream(options)
        return MortalStream(self, options)

    def stats(self) -> dict[str, int]:
        return {"starts": self.starts}


@dataclass
class Company:
    """A companion of engines: there before any of them, and as long as any is."""

    engines: Iterable[MortalEngine]
    start_failures: deque[Exception] = field(default_factory=deque)
    up: bool = False
    starts: int = 0

    async def start(self) -> None:
        if self.up:
            return
        assert not any(engine.up for engine in self.engines)
        self.starts += 1
        await asyncio.sleep(0)
        if self.start_failures:
            raise self.start_failures.popleft()
        self.up = True

    async def stop(self) -> None:
        assert not any(engine.up for engine in self.engines)
        self.up = False


@dataclass
class MortalStream(FakeStream):
    """Belongs to the life of the engine that opened it."""

    life: int = 0

    def __post_init__(self) -> None:
        self.life = self._life()

    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        assert isinstance(self.engine, MortalEngine)
        if self.engine.dead or self.life != self._life():
            raise EngineCrashed("the process died")
        return await super().step(audio, kind)

    def _life(self) -> int:
        assert isinstance(self.engine, MortalEngine)
        return self.engine.starts


@dataclass
class User:
    """The scheduler, as the pool sees it."""

    engine: Engine | None = None
    failure: EngineError | None = None
    lost: list[EngineError] = field(default_factory=list)

    def engine_ready(self, engine: Engine) -> None:
        assert isinstance(engine, MortalEngine)
        assert engine.running
        self.engine, self.failure = engine, None

    def engine_gone(self, error: EngineError) -> None:
        if self.engine is not None:
            self.lost.append(error)
        self.engine, self.failure = None, None

    def engine_failed(self, error: EngineError) -> None:
        self.engine, self.failure = None, error
