"""Who is let into the KV cache: by tokens, by how long it keeps what is written, and in what order."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.domain import StepKind
from qwen3_asr_server.engines._vllm_room import LONGEST_RETENTION_S, MOST_WAITING, KvRoom
from qwen3_asr_server.errors import EngineNotReady, EngineTimeout

FINAL, CANDIDATE, PARTIAL = StepKind.FINAL, StepKind.CANDIDATE, StepKind.PARTIAL


class World:
    """A room of 1000 tokens, 600 of which may be charged, and its clock."""

    def __init__(self, wait_s: float = 60.0, tokens: int | None = 1000) -> None:
        self.now = 0.0
        self.written = 0
        self.room = KvRoom(tokens, 2.0, wait_s, lambda: self.written, lambda: self.now)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_streams_are_let_in_as_long_as_they_fit() -> None:
    room = World().room
    assert [await room.enter(name, 200, PARTIAL) for name in "abcd"] == [True, True, True, False]
    assert room.charged == 600
    room.leave("b")
    assert await room.enter("d", 200, PARTIAL)
    assert room.flat()["kv_partials_skipped"] == 1


async def test_a_stream_is_charged_with_what_it_needs_now_and_not_twice() -> None:
    room = World().room
    for tokens in (100, 200, 300):
        assert await room.enter("a", tokens, PARTIAL)
    assert room.charged == 300


async def test_it_is_full_when_a_newcomer_would_find_no_room() -> None:
    world = World(tokens=2000)
    world.written = 10**6
    assert not world.room.full, "nobody is in"
    world.now = 60.0
    await world.room.enter("a", 700, PARTIAL)
    assert not world.room.full
    world.written += 2000
    assert world.room.full, "what is written now is gone in five seconds"
    world.now = 70.0
    assert not world.room.full
    await world.room.enter("a", 701, PARTIAL)
    assert world.room.full
    world.room.leave("a")
    assert not world.room.full


@pytest.mark.parametrize("kind", [PARTIAL, CANDIDATE, FINAL])
async def test_who_is_alone_has_room_however_much_it_needs(kind: StepKind) -> None:
    assert await World().room.enter("a", 5000, kind)


async def test_a_stream_that_is_in_gets_its_final_even_where_it_does_not_fit() -> None:
    room = World().room
    assert await room.enter("a", 300, PARTIAL)
    assert await room.enter("b", 300, PARTIAL)
    assert not await room.enter("a", 400, PARTIAL)
    async with asyncio.timeout(1):
        assert await room.enter("a", 400, FINAL)
    assert room.waited == 0


async def test_finals_wait_for_room_in_the_order_they_came_and_before_newer_partials() -> None:
    room = World().room
    await room.enter("a", 600, PARTIAL)
    order: list[str] = []

    async def final(name: str) -> None:
        await room.enter(name, 400, FINAL)
        order.append(name)

    waiting = [asyncio.create_task(final(name)) for name in "xy"]
    await turn()
    assert not order
    assert not await room.enter("p", 10, PARTIAL)
    room.leave("a")
    await turn()
    assert order == ["x"]
    room.leave("x")
    await asyncio.wait(waiting)
    assert order == ["x", "y"]
    assert room.waited == 2


async def test_few_finals_wait_at_once_so_that_those_which_free_the_room_get_their_turn() -> None:
    room = World().room
    await room.enter("a", 600, PARTIAL)
    waiting = [asyncio.create_task(room.enter(number, 100, FINAL)) for number in range(MOST_WAITING + 2)]
    await turn()
    assert [task.done() for task in waiting] == [True] * 2 + [False] * MOST_WAITING
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_a_final_does_not_wait_for_ever() -> None:
    room = World(wait_s=0.01).room
    await room.enter("a", 600, PARTIAL)
    with pytest.raises(EngineTimeout):
        await room.enter("x", 100, FINAL)
    room.leave("a")
    assert room.charged == 0


@pytest.mark.parametrize("let_in_first", [True, False])
async def test_a_final_that_was_given_up_holds_nothing(let_in_first: bool) -> None:
    room = World().room
    await room.enter("a", 600, PARTIAL)
    waiting = asyncio.create_task(room.enter("x", 100, FINAL))
    behind = asyncio.create_task(room.enter("y", 100, FINAL))
    await turn()
    if let_in_first:
        room.leave("a")
    waiting.cancel()
    await asyncio.wait([waiting])
    room.leave("a")
    assert await behind
    assert room.charged == 100


async def test_the_end_of_the_engine_fails_whoever_waits() -> None:
    room = World().room
    await room.enter("a", 600, PARTIAL)
    waiting = asyncio.create_task(room.enter("x", 100, FINAL))
    await turn()
    room.close(EngineNotReady("stopped"))
    with pytest.raises(EngineNotReady):
        await waiting


async def test_partials_rest_while_the_cache_forgets_too_soon() -> None:
    world = World()
    assert world.room.retention_s == LONGEST_RETENTION_S
    world.written = (
        1000  # 200 a second: the cache of 1000 keeps what is written for five seconds, less than three steps
    )
    assert world.room.retention_s == pytest.approx(5)
    assert not await world.room.enter("a", 10, PARTIAL)
    assert not await world.room.enter("a", 10, CANDIDATE)
    assert await world.room.enter("a", 10, FINAL)
    world.now = 2.0
    assert world.room.retention_s > 6
    assert await world.room.enter("b", 10, PARTIAL)


async def test_everything_fits_where_the_size_is_unknown() -> None:
    world = World(tokens=None)
    world.written = 10**9
    assert all([await world.room.enter(name, 10**6, PARTIAL) for name in range(50)])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400), st.sampled_from([PARTIAL, FINAL, None])), max_size=60)
)
def test_no_final_is_left_behind(steps: list[tuple[int, int, StepKind | None]]) -> None:
    """Whatever comes and goes: when all streams that are in have left, no final waits and nothing is charged."""

    async def run() -> None:
        room = World().room
        tasks: dict[int, asyncio.Task[bool]] = {}
        for name, tokens, kind in steps:
            if name in tasks:
                continue
            if kind is None:
                room.leave(name)
            elif kind is PARTIAL:
                await room.enter(name, tokens, kind)
            else:
                tasks[name] = asyncio.create_task(room.enter(name, tokens, kind))
            await turn()
        for _ in range(len(tasks) + 1):
            for name in range(6):
                if name not in tasks or tasks[name].done():
                    room.leave(name)
            await turn()
        assert all(task.done() for task in tasks.values())
        for name in range(6):
            room.leave(name)
        assert room.charged == 0

    asyncio.run(run())
