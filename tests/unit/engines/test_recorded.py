"""Inside the engines, too, steps of recordings make way for live ones."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_asr_server.domain import GRID_SAMPLES, StepKind
from qwen3_asr_server.engines._pocketsphinx_pool import DecoderPool
from qwen3_asr_server.engines._qwen3_queue import Decode, QueueOptions, StepQueue, Written
from qwen3_asr_server.engines._vllm_request import PRIORITIES, RECORDED_PRIORITY, Request
from qwen3_asr_server.engines._vllm_room import KvRoom
from qwen3_asr_server.errors import EngineNotReady, EngineTimeout

FINAL, PARTIAL = StepKind.FINAL, StepKind.PARTIAL


class PaperProcess:
    """A process that only says that it runs."""

    pid = 1
    alive = True

    def kill(self) -> None:
        self.alive = False

    async def ended(self) -> None: ...


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# PocketSphinx: decoders


async def test_a_live_final_gets_the_next_decoder_before_recordings_that_came_first() -> None:
    pool = DecoderPool(1, PaperProcess, start_timeout_s=5, wait_timeout_s=5, reclaim_after_s=2)  # type: ignore[arg-type]
    slot = await pool.lend("busy", FINAL)
    assert slot is not None
    served: list[str] = []

    async def ask(holder: str, *, recorded: bool) -> None:
        got = await pool.lend(holder, FINAL, recorded=recorded)
        served.append(holder)
        assert got is not None
        pool.give_back(holder)
        pool.done(got)

    async with asyncio.TaskGroup() as group:
        for holder in ("file 1", "file 2", "live 1", "live 2"):
            group.create_task(ask(holder, recorded=holder.startswith("file")))
            await turn()
        pool.give_back("busy")
        pool.done(slot)
    assert served == ["live 1", "live 2", "file 1", "file 2"]
    await pool.close()


# Qwen3-ASR on one thread: the queue


async def test_steps_of_recordings_are_the_last_of_a_queue() -> None:
    batches: list[list[int]] = []

    def run(batch: Sequence[Decode]) -> list[Written]:
        batches.append([wanted.max_tokens for wanted in batch])
        return [Written((), complete=True) for _ in batch]

    def wanted(number: int, kind: StepKind, *, recorded: bool = False) -> Decode:
        return Decode(kind, np.zeros(GRID_SAMPLES, np.float32), None, "", (), number, recorded)

    queue = StepQueue(run, QueueOptions(2, 20, 20))
    decodes = [
        wanted(1, FINAL, recorded=True),
        wanted(2, FINAL, recorded=True),
        wanted(3, PARTIAL),
        wanted(4, FINAL),
        wanted(5, PARTIAL),
    ]
    await asyncio.gather(*map(queue.decode, decodes))
    assert batches == [[4, 3], [5], [1, 2]], "a batch takes as long as its longest step"
    await queue.stop()


async def test_partials_without_end_leave_recordings_a_turn_now_and_then() -> None:
    now = 0.0
    batches: list[list[int]] = []
    proceed = threading.Semaphore(0)

    def run(batch: Sequence[Decode]) -> list[Written]:
        proceed.acquire()
        batches.append([wanted.max_tokens for wanted in batch])
        return [Written((), complete=True) for _ in batch]

    def asked(kind: StepKind, number: int, *, recorded: bool = False) -> "asyncio.Task[Written | None]":
        wanted = Decode(kind, np.zeros(GRID_SAMPLES, np.float32), None, "", (), number, recorded)
        return asyncio.create_task(queue.decode(wanted))

    async def work_for(seconds: float, *live: StepKind) -> list[list[int]]:
        """Have what the thread has done, while further steps wait already."""
        nonlocal now, running
        now += seconds
        before, coming = len(batches), [asked(kind, 100 + kind) for kind in live]
        await turn()
        proceed.release()
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await turn()
        running = {task for task in (*running, *coming) if not task.done()}
        return batches[before:]

    queue = StepQueue(run, QueueOptions(2, 1e6, 1e6), lambda: now)
    running = {asked(PARTIAL, 1)}
    await turn()
    running |= {asked(FINAL, 7, recorded=True), asked(FINAL, 8, recorded=True)}
    assert await work_for(1, PARTIAL) == [[1]]
    assert await work_for(28, PARTIAL) == [[102]]
    assert await work_for(5, FINAL, PARTIAL) == [[102]], "partials until a piece has waited for so long"
    assert await work_for(1, PARTIAL) == [[100, 102]], "finals even then"
    assert await work_for(1, PARTIAL) == [[7]], "one piece"
    assert await work_for(20, PARTIAL) == [[102, 102]], "and the next when it has waited as long again"
    assert await work_for(20, PARTIAL) == [[102]]
    assert await work_for(1) == [[8]]
    for _ in range(2):
        proceed.release()
    await asyncio.gather(*running)
    await queue.stop()


async def test_steps_of_recordings_wait_as_long_as_live_ones_go_before_them() -> None:
    pool = DecoderPool(1, PaperProcess, start_timeout_s=5, wait_timeout_s=0, reclaim_after_s=2)  # type: ignore[arg-type]
    assert await pool.lend("live", FINAL)
    with pytest.raises(EngineTimeout):
        await pool.lend("another", FINAL)
    file = asyncio.create_task(pool.lend("file", FINAL, recorded=True))
    await turn()
    await asyncio.sleep(0)
    assert not file.done()
    file.cancel()
    await turn()
    await pool.close()

    proceed = threading.Event()

    def run(batch: Sequence[Decode]) -> list[Written]:
        proceed.wait(10)
        return [Written((), complete=True) for _ in batch]

    queue = StepQueue(run, QueueOptions(1, 20, 0))
    silence = np.zeros(GRID_SAMPLES, np.float32)
    first, waits = [
        asyncio.create_task(queue.decode(Decode(FINAL, silence, None, "", (), 1, recorded=True))) for _ in range(2)
    ]
    await turn()
    with pytest.raises(EngineTimeout):
        await queue.decode(Decode(FINAL, silence, None, "", (), 1))
    assert not waits.done()
    proceed.set()
    assert await first
    assert await waits
    await queue.stop()


# vLLM: requests and room in the cache


@pytest.mark.parametrize("kind", StepKind)
def test_vllm_serves_every_live_request_first(kind: StepKind) -> None:
    assert Request((), (), (), 1, kind, 0.0).priority == PRIORITIES[kind] < RECORDED_PRIORITY
    assert Request((), (), (), 1, kind, 0.0, recorded=True).priority == RECORDED_PRIORITY


def room_of_1000(wait_s: float = 60.0) -> KvRoom:
    return KvRoom(1000, 2.0, wait_s, lambda: 0, lambda: 0.0)


async def waiting(room: KvRoom, name: str, tokens: int, *, recorded: bool = True) -> "asyncio.Task[bool]":
    task = asyncio.create_task(room.enter(name, tokens, FINAL, recorded=recorded))
    await turn()
    return task


async def test_recordings_fill_half_of_what_live_streams_may() -> None:
    room = room_of_1000()
    first, second, third = [await waiting(room, name, 150) for name in "abc"]
    assert first.done()
    assert second.done()
    assert not third.done()
    assert not room.full, "nobody notices that it waits"
    assert await room.enter("live", 150, PARTIAL)
    room.leave("a")
    await turn()
    assert not third.done(), "with the live stream there are 300 still"
    room.leave("live")
    await turn()
    assert third.done()


async def test_one_recording_is_always_let_in_but_not_before_a_live_final() -> None:
    room = room_of_1000()
    await room.enter("a", 600, PARTIAL)
    live = await waiting(room, "b", 100, recorded=False)
    recorded = await waiting(room, "c", 100)
    assert not live.done()
    assert not recorded.done()
    room.leave("a")
    await turn()
    assert live.done()
    assert recorded.done()
    assert (await waiting(room_of_1000(), "huge", 5000)).done()


async def test_recordings_write_no_more_than_retention_suffers() -> None:
    now, written = 0.0, 0
    room = KvRoom(1000, 2.0, 60.0, lambda: written, lambda: now)
    now, written = 10.0, 2000
    assert room.retention_s < 6
    assert (await waiting(room, "a", 50)).done(), "one is always let in"
    second = await waiting(room, "b", 50)
    assert not second.done()
    now = 40.0
    room.leave("a")
    await turn()
    assert second.done()


async def test_a_recording_that_waits_is_told_of_the_end() -> None:
    room = room_of_1000()
    await room.enter("a", 300, FINAL, recorded=True)
    task = await waiting(room, "b", 100)
    room.close(EngineNotReady("stopped"))
    with pytest.raises(EngineNotReady):
        await task


async def test_a_recording_waits_for_room_as_long_as_it_takes() -> None:
    room = room_of_1000(wait_s=0.0)
    await room.enter("a", 550, FINAL)
    with pytest.raises(EngineTimeout):
        await room.enter("b", 100, FINAL)
    await room.enter("c", 300, FINAL, recorded=True)
    task = await waiting(room, "d", 100)
    assert not task.done()
    room.leave("c")
    assert await task


async def test_a_recording_that_gives_up_leaves_nothing_behind() -> None:
    room = room_of_1000()
    await room.enter("a", 300, FINAL, recorded=True)
    given_up, behind = await waiting(room, "b", 100), await waiting(room, "c", 100)
    given_up.cancel()
    await turn()
    room.leave("a")
    await turn()
    assert behind.done()
    room.leave("c")
    assert room.charged == 0
