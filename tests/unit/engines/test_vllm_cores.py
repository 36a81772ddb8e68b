"""Loads of the recogniser and the aligner at once, with processes that are none: each has its own, and ends its own."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator

import pytest

from qwen3_asr_server.engines._vllm_cores import CoreStart, load_core
from qwen3_asr_server.errors import EngineNotReady

DEADLINE_S = 10.0


class Process:
    name = "EngineCore"

    def __init__(self) -> None:
        self.killed = threading.Event()
        self.joined = False

    def kill(self) -> None:
        self.killed.set()

    def join(self, timeout: float) -> None:
        self.joined = True


class Loading:
    """A load as vLLM's: its process comes, and it ends when it is let go on, or fails when its process is killed."""

    def __init__(self, children: list[Process]) -> None:
        self._children = children
        self.process = Process()
        self.process_is_there = threading.Event()
        self.go_on = threading.Event()
        self.stopped = False

    def __call__(self, start: CoreStart) -> "Loading":
        self._start = start
        with start.alone():
            self._children.append(self.process)
            self.process_is_there.set()
            while not self.go_on.wait(0.005):
                if self.process.killed.is_set():
                    raise EngineNotReady("its process was killed")
        return self

    def stop(self) -> None:
        self._start.join()
        self.stopped = True

    async def until_there(self) -> None:
        assert await asyncio.to_thread(self.process_is_there.wait, DEADLINE_S)


@pytest.fixture
def new_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Loading]]:
    children: list[Process] = []
    loads: list[Loading] = []

    def make() -> Loading:
        loads.append(Loading(children))
        return loads[-1]

    monkeypatch.setattr(multiprocessing, "active_children", lambda: list(children))
    yield make
    for load in loads:
        load.go_on.set()


async def cancelled(task: "asyncio.Task[Loading]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(DEADLINE_S):
            await task


async def test_one_starts_after_the_other_and_each_has_its_own_processes(new_load: Callable[[], Loading]) -> None:
    aligner, recogniser = new_load(), new_load()
    first = asyncio.create_task(load_core(aligner))
    await aligner.until_there()
    second = asyncio.create_task(load_core(recogniser))
    assert not await asyncio.to_thread(recogniser.process_is_there.wait, 0.05)
    aligner.go_on.set()
    await recogniser.until_there()
    recogniser.go_on.set()
    for loaded in (await first, await second):
        loaded.stop()
        assert [load.process.joined for load in (aligner, recogniser)] == [True, loaded is recogniser]


@pytest.mark.parametrize("given_up", ["waiting", "starting"])
async def test_giving_up_a_load_ends_nothing_of_another(new_load: Callable[[], Loading], given_up: str) -> None:
    loads = {"starting": new_load(), "waiting": new_load()}
    tasks = {"starting": asyncio.create_task(load_core(loads["starting"]))}
    await loads["starting"].until_there()
    tasks["waiting"] = asyncio.create_task(load_core(loads["waiting"]))
    await asyncio.to_thread(loads["waiting"].process_is_there.wait, 0.05)
    await cancelled(tasks.pop(given_up))
    (other,) = tasks
    loads[other].go_on.set()
    assert await tasks[other] is loads[other]
    assert not loads[other].process.killed.is_set()
    assert loads[given_up].process.killed.is_set() == (given_up == "starting"), "the other never had a process"


async def test_giving_up_a_load_ends_nothing_that_runs(new_load: Callable[[], Loading]) -> None:
    running, loading = new_load(), new_load()
    running.go_on.set()
    await load_core(running)
    task = asyncio.create_task(load_core(loading))
    await loading.until_there()
    await cancelled(task)
    assert loading.process.killed.is_set()
    assert not running.process.killed.is_set()


async def test_a_load_that_comes_through_all_the_same_is_undone(new_load: Callable[[], Loading]) -> None:
    load = new_load()
    load.process.kill = load.go_on.set  # type: ignore[method-assign]  # too late
    task = asyncio.create_task(load_core(load))
    await load.until_there()
    await cancelled(task)
    assert load.stopped
