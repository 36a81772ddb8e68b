"""An engine around a blocking model whose load takes its time, in the pool: never are two models in memory."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from qwen3_asr_server.engines import _qwen3_engine
from qwen3_asr_server.engines._base import Engine, EngineOptions
from qwen3_asr_server.engines._qwen3_checkpoint import describe
from qwen3_asr_server.engines._qwen3_engine import WholeEngine
from qwen3_asr_server.engines._qwen3_queue import Decode, Written
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.pool import Pool, PoolOptions
from support.clock import clock

DEADLINE_S = 10.0


class Memory:
    """What is in memory, and loads that wait until they are let go on; all seen from threads.

    Attributes:
        begun: how many loads have begun.
        most: the most models that were in memory at once, in whole or in part.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.changed = threading.Condition()
        self.begun = self.held = self.most = 0

    def load(self, _: EngineOptions) -> "SlowModel":
        self._hold(1)
        assert self.go_on.wait(DEADLINE_S)
        return SlowModel(self)

    def release(self) -> None:
        self._hold(-1)

    async def until_begun(self, count: int) -> None:
        await asyncio.to_thread(self._wait, lambda: self.begun >= count)

    async def until_held(self, count: int) -> None:
        await asyncio.to_thread(self._wait, lambda: self.held == count)

    def _wait(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S)

    def _hold(self, more: int) -> None:
        with self.changed:
            self.held += more
            self.begun += more > 0
            self.most = max(self.most, self.held)
            self.changed.notify_all()


class SlowModel:
    device = dtype = "none"

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def read(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def decode(self, batch: Sequence[Decode]) -> Sequence[Written]:
        return [Written(tuple(map(ord, "language English<asr_text>yes")), complete=True) for _ in batch]

    def close(self) -> None:
        self._memory.release()


class Nobody:
    """Uses the engine, and does nothing with it."""

    engine: Engine | None = None

    def engine_ready(self, engine: Engine) -> None:
        self.engine = engine

    def engine_gone(self, error: EngineError) -> None:
        self.engine = None

    def engine_failed(self, error: EngineError) -> None:
        raise error


@asynccontextmanager
async def staged(memory: Memory) -> AsyncIterator[tuple[Pool, Nobody, dict[str, WholeEngine]]]:
    """Run a pool of two models, `a` the default."""
    info = describe("slow", "slow", "none", "tests")
    engines = {name: WholeEngine(info, EngineOptions(), memory.load, max_batch=1) for name in "ab"}
    pool, user = Pool(engines, PoolOptions(), Metrics(), clock), Nobody()
    pool.start(user)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield pool, user, engines
    finally:
        memory.go_on.set()
        await pool.stop()
    assert memory.held == 0


async def test_a_switch_in_mid_load_waits_for_the_load_and_undoes_it() -> None:
    memory = Memory()
    async with staged(memory) as (pool, user, engines):
        with pool.lease("a"):
            await memory.until_begun(1)
        with pool.lease("b"):
            for _ in range(20):  # all that the pool might do now
                await asyncio.sleep(0)
            assert (memory.begun, memory.held) == (1, 1)
            memory.go_on.set()
            await memory.until_begun(2)
            while user.engine is None:  # noqa: ASYNC110 - threads tell nobody
                await asyncio.sleep(0.001)
            assert user.engine is engines["b"]
            assert (memory.held, memory.most) == (1, 1)


async def test_a_release_in_mid_load_ends_when_the_memory_is_free() -> None:
    memory = Memory()
    async with staged(memory) as (pool, _, _):
        with pool.lease("a"):
            await memory.until_begun(1)
        release = asyncio.create_task(pool.release())
        await asyncio.wait({release}, timeout=0.05)
        assert not release.done()
        memory.go_on.set()
        assert await release
        assert (memory.begun, memory.held) == (1, 0)


async def test_a_load_that_never_ends_is_waited_for_so_long_and_undoes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_qwen3_engine, "ABANDON_S", 0.01)
    memory = Memory()
    async with staged(memory) as (pool, _, _):
        with pool.lease("a"):
            await memory.until_begun(1)
        assert await pool.release()
        assert memory.held == 1
        memory.go_on.set()
        await memory.until_held(0)
