"""What is under way is counted to its end, however it ends."""

import asyncio

import pytest

from qwen3_asr_server.runtime.in_flight import InFlight


async def test_the_wait_ends_with_the_last_one():
    things = InFlight[str]()
    await things.all_over()
    with things.hold("one"):
        waiting = asyncio.create_task(things.all_over())
        with things.hold("two"):
            assert set(things) == {"one", "two"}
        await asyncio.sleep(0)
        assert not waiting.done()
        assert len(things) == 1
    async with asyncio.timeout(10):
        await waiting


async def test_what_fails_is_over_too():
    things = InFlight[str]()
    with pytest.raises(ValueError, match="broken"), things.hold("one"):
        raise ValueError("broken")
    async with asyncio.timeout(10):
        await things.all_over()


def test_one_more_may_begin_while_all_are_told():
    things = InFlight[int]()
    with things.hold(1), things.hold(2):
        for _ in things:
            with things.hold(3):
                assert len(things) == 3
