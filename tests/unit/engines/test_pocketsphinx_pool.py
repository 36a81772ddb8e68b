"""Who gets a decoder, in which order, and who loses one: processes replaced by objects, time by a number."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._pocketsphinx_pool import DecoderPool, Slot
from qwen3_asr_server.errors import EngineCrashed, EngineNotReady, EngineTimeout

PARTIAL, CANDIDATE, FINAL = StepKind.PARTIAL, StepKind.CANDIDATE, StepKind.FINAL


@dataclass(eq=False)
class PaperProcess:
    """A process that only remembers whether it runs."""

    pid: int
    alive: bool = False
    failure: Exception | None = None
    may_start: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, timeout_s: float) -> None:
        await self.may_start.wait()
        if self.failure is not None:
            raise self.failure
        self.alive = True

    def kill(self) -> None:
        self.alive = False

    async def ended(self) -> None:
        assert not self.alive


class World:
    """A pool, its processes and its clock."""

    def __init__(self, size: int, *, reclaim_after_s: float = 2.0, wait_timeout_s: float = 5.0) -> None:
        self.now = 100.0
        self.made: list[PaperProcess] = []
        self.slow_start = False
        self.failures: list[Exception] = []
        self.pool = DecoderPool(
            size,
            self._make,
            start_timeout_s=5.0,
            wait_timeout_s=wait_timeout_s,
            reclaim_after_s=reclaim_after_s,
            clock=lambda: self.now,
        )

    def _make(self) -> PaperProcess:
        process = PaperProcess(pid=1000 + len(self.made), failure=self.failures.pop() if self.failures else None)
        if not self.slow_start:
            process.may_start.set()
        self.made.append(process)
        return process

    async def step(self, holder: str, kind: StepKind = PARTIAL) -> Slot | None:
        """Take a whole step and return the slot it ran in."""
        slot = await self.pool.lend(holder, kind)
        if slot is not None:
            self.pool.done(slot)
        return slot

    async def waiter(self, holder: str, kind: StepKind) -> asyncio.Task[Slot | None]:
        """Begin a step that has to wait."""
        task = asyncio.create_task(self.pool.lend(holder, kind))
        await settle()
        return task


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def one() -> AsyncIterator[World]:
    world = World(1)
    yield world
    await world.pool.close()


@pytest.fixture
async def two() -> AsyncIterator[World]:
    world = World(2)
    yield world
    await world.pool.close()


async def test_processes_start_on_demand_and_never_too_many(two: World) -> None:
    assert two.pool.pids == []
    await two.step("a")
    assert len(two.pool.pids) == 1
    await two.step("b")
    assert await two.step("c") is None
    assert len(two.pool.pids) == 2


async def test_a_holder_keeps_its_decoder_and_its_state(two: World) -> None:
    first, other, again = await two.step("a"), await two.step("b"), await two.step("a")
    assert first is again
    assert first is not other
    assert first.lease == again.lease


async def test_a_decoder_given_back_is_used_again(one: World) -> None:
    slot = await one.step("a")
    lease = slot.lease
    one.pool.give_back("a")
    assert await one.step("b") is slot
    assert slot.lease != lease
    assert len(one.pool.pids) == 1


async def test_a_decoder_whose_holder_left_in_mid_step_is_not_lent_before_the_step_ends(one: World) -> None:
    slot = await one.pool.lend("a", PARTIAL)
    one.pool.give_back("a")
    assert await one.step("b") is None
    one.pool.done(slot)
    assert await one.step("b") is slot


@pytest.mark.parametrize(("idle_s", "taken"), [(1.9, False), (2.0, True)])
async def test_an_idle_lease_is_taken_back(one: World, idle_s: float, taken: bool) -> None:
    slot = await one.step("a")
    lease = slot.lease
    one.now += idle_s
    assert (await one.step("b") is slot) is taken
    assert (slot.lease != lease) is taken


async def test_the_lease_idle_for_longest_is_taken(two: World) -> None:
    first, second = await two.step("a"), await two.step("b")
    one_second_later = two.now = two.now + 1
    assert await two.step("a") is first
    two.now = one_second_later + 5
    assert await two.step("c") is second


async def test_a_step_that_runs_is_never_taken_back(one: World) -> None:
    await one.pool.lend("a", PARTIAL)
    one.now += 1000
    assert await one.step("b") is None


async def test_who_lost_a_decoder_gets_one_again_with_another_lease(one: World) -> None:
    lease = (await one.step("a")).lease
    one.now += 2
    await one.step("b")
    one.now += 2
    assert (await one.step("a")).lease != lease


async def test_finals_wait_in_order_and_nothing_else_waits(one: World) -> None:
    slot = await one.pool.lend("a", PARTIAL)
    order = []
    tasks = {holder: await one.waiter(holder, FINAL) for holder in ("f1", "f2")}
    assert await one.step("p", PARTIAL) is None
    assert await one.step("c", CANDIDATE) is None
    one.pool.give_back("a")
    one.pool.done(slot)
    while tasks:
        await settle()
        (holder,) = [holder for holder, task in tasks.items() if task.done()]
        order.append(holder)
        slot = tasks.pop(holder).result()
        one.pool.give_back(holder)
        one.pool.done(slot)
    assert order == ["f1", "f2"]


async def test_a_partial_does_not_overtake_a_waiting_final(one: World) -> None:
    slot = await one.pool.lend("a", PARTIAL)
    final = await one.waiter("f", FINAL)
    one.pool.done(slot)
    one.now += 2
    assert await one.step("p") is None
    await settle()
    assert final.result() is slot


async def test_a_final_takes_the_lease_idle_for_longest_at_once(two: World) -> None:
    first, _ = await two.step("a"), await two.step("b")
    assert await two.step("f", FINAL) is first


async def test_a_wait_has_an_end() -> None:
    world = World(1, wait_timeout_s=0.01)
    slot = await world.pool.lend("a", PARTIAL)
    with pytest.raises(EngineTimeout):
        await world.pool.lend("f", FINAL)
    world.pool.give_back("a")
    world.pool.done(slot)
    assert await world.step("b") is slot
    await world.pool.close()


@pytest.mark.parametrize("handed_over", [False, True], ids=["while waiting", "when just handed over"])
async def test_a_wait_given_up_loses_no_decoder(one: World, handed_over: bool) -> None:
    slot = await one.pool.lend("a", PARTIAL)
    final = await one.waiter("f", FINAL)
    one.pool.give_back("a")
    if handed_over:
        one.pool.done(slot)
    final.cancel()
    await asyncio.wait([final])
    if not handed_over:
        one.pool.done(slot)
    assert final.cancelled()
    assert await one.step("b") is slot


async def test_a_dead_process_is_replaced_and_its_state_forgotten(one: World) -> None:
    slot = await one.step("a")
    lease = slot.lease
    one.made[-1].alive = False
    assert one.pool.pids == []
    assert await one.step("a") is slot
    assert slot.lease != lease
    assert one.pool.pids == [one.made[-1].pid]


async def test_a_process_that_cannot_start_leaves_room_for_the_next_attempt(one: World) -> None:
    one.failures = [EngineCrashed("no"), EngineCrashed("no")]
    with pytest.raises(EngineCrashed):
        # The first process is the slot's own, made and dropped unstarted; the second one fails.
        await one.step("a")
    assert await one.step("b") is not None


async def test_a_start_given_up_leaves_room_for_the_next_attempt(one: World) -> None:
    one.slow_start = True
    starting = await one.waiter("a", PARTIAL)
    starting.cancel()
    await asyncio.wait([starting])
    one.slow_start = False
    assert await one.step("b") is not None


async def test_closing_ends_everything_and_tells_who_waits(two: World) -> None:
    await two.pool.lend("a", PARTIAL)
    await two.pool.lend("b", PARTIAL)
    waiting = await two.waiter("f", FINAL)
    await two.pool.close()
    assert two.pool.pids == []
    with pytest.raises(EngineNotReady):
        await waiting
    with pytest.raises(EngineNotReady):
        await two.step("a")


async def test_a_process_that_starts_while_the_pool_closes_is_not_lent(one: World) -> None:
    one.slow_start = True
    starting = await one.waiter("a", PARTIAL)
    await one.pool.close()
    one.made[-1].may_start.set()
    with pytest.raises(EngineNotReady):
        await starting
    one.made[-1].kill()
