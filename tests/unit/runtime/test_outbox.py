import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.runtime.outbox import Outbox, OutboxClosed, OutboxOverflow
from support.clock import settle, virtual_time


async def drain(outbox: Outbox[str]) -> list[str]:
    outbox.close()
    found = [await outbox.get() for _ in range(len(outbox))]
    with pytest.raises(OutboxClosed):
        await outbox.get()
    return found


@virtual_time
async def test_first_in_first_out():
    outbox: Outbox[str] = Outbox(8)
    for message in "abc":
        outbox.put(message)
    assert await drain(outbox) == ["a", "b", "c"]


@virtual_time
async def test_a_newer_partial_takes_the_place_of_an_unsent_one():
    outbox: Outbox[str] = Outbox(3)
    outbox.put("started")
    outbox.put("partial 1", replaces=7)
    outbox.put("stopped")
    outbox.put("partial 2", replaces=7)
    assert await drain(outbox) == ["started", "partial 2", "stopped"]


@virtual_time
async def test_a_sent_partial_is_not_replaced():
    outbox: Outbox[str] = Outbox(3)
    outbox.put("partial 1", replaces=7)
    assert await outbox.get() == "partial 1"
    outbox.put("stopped")
    outbox.put("partial 2", replaces=7)
    assert await drain(outbox) == ["stopped", "partial 2"]


@virtual_time
async def test_overflow_is_told_to_the_reader_and_nothing_is_delivered_after_it():
    outbox: Outbox[str] = Outbox(2)
    outbox.put("a", replaces=1)
    outbox.put("b")
    outbox.put("a'", replaces=1)  # needs no room
    assert len(outbox) == 2
    outbox.put("c")
    for _ in range(2):
        with pytest.raises(OutboxOverflow):
            await outbox.get()
    outbox.put("d")
    assert len(outbox) == 2


@virtual_time
async def test_a_cancelled_get_loses_nothing():
    outbox: Outbox[str] = Outbox(2)
    getting = asyncio.ensure_future(outbox.get())
    await settle()
    outbox.put("a")
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert await outbox.get() == "a"


@virtual_time
async def test_closing_wakes_the_reader():
    outbox: Outbox[str] = Outbox(2)
    getting = asyncio.ensure_future(outbox.get())
    await settle()
    outbox.close()
    outbox.put("too late")
    with pytest.raises(OutboxClosed):
        await getting


@given(st.lists(st.tuples(st.sampled_from(["event", "partial", "get"]), st.integers(0, 2)), max_size=60))
def test_order_and_completeness(script):
    """Against a list: events all come, in order; of partials at least the last of each key."""

    @virtual_time
    async def run():
        outbox: Outbox[tuple[int, str, int]] = Outbox(1000)
        model: list[tuple[int, str, int]] = []
        received = []
        for number, (kind, key) in enumerate(script):
            if kind == "get" and model:
                received.append(await outbox.get())
                assert received[-1] == model.pop(0)
                continue
            message = (number, kind, key)
            outbox.put(message, replaces=key if kind == "partial" else None)
            unsent = [i for i, m in enumerate(model) if m[1:] == ("partial", key)] if kind == "partial" else []
            if unsent:
                model[unsent[0]] = message
            else:
                model.append(message)
        assert await drain(outbox) == model

    run()
