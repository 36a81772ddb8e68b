"""Bodies that are read as a whole: few long ones at a time, short ones at once, none without end."""

import asyncio

import pytest

from qwen3_asr_server.errors import ClientError, IdleTimeout, InvalidValue, Overloaded, TooLarge
from qwen3_asr_server.frontends._bodies import LONG_AT_ONCE, LONG_BYTES, LONGEST_BODY_S, Bodies, json_object, whole_body
from support.clock import clock, virtual_time
from support.raw_request import Sent

STALL_S = 0.05
SHORT = b'{"a": 1}'
LONG = SHORT + b" " * LONG_BYTES


def sent(body: bytes) -> Sent:
    return Sent(body[:5], body[5:], **{"content-length": str(len(body))})


@virtual_time
async def test_a_byte_now_and_then_is_not_waited_for_without_end() -> None:
    began = clock()
    with pytest.raises(IdleTimeout, match="too long"):
        await whole_body(Sent(*[b"x"] * 1000, pause_s=50), 1_000_000, stall_s=60)
    assert clock() - began <= LONGEST_BODY_S + 1


@pytest.mark.parametrize("body", [SHORT, LONG])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_is_read_whatever_its_length(body: bytes, announced: bool) -> None:
    exchange = sent(body) if announced else Sent(body)
    async with Bodies(len(body), STALL_S).read(exchange, json_object) as values:
        assert values == {"a": 1}


async def test_long_bodies_take_turns_and_short_ones_do_not() -> None:
    bodies = Bodies(2 * LONG_BYTES, STALL_S)
    inside = asyncio.Semaphore(0)
    leave = asyncio.Event()

    async def hold() -> None:
        async with bodies.read(sent(LONG), json_object):
            inside.release()
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(LONG_AT_ONCE):
            group.create_task(hold())
            await inside.acquire()
        with pytest.raises(Overloaded):
            async with bodies.read(sent(LONG), json_object):
                pass
        async with bodies.read(sent(SHORT), json_object) as values:
            assert values == {"a": 1}
        leave.set()
    async with bodies.read(sent(LONG), json_object) as values:
        assert values == {"a": 1}


@pytest.mark.parametrize(
    ("exchange", "error"),
    [
        (sent(LONG + LONG), TooLarge),
        (Sent(LONG, LONG), TooLarge),
        (sent(LONG + b"x"), InvalidValue),
        (sent(b"[]"), InvalidValue),
        (Sent(b""), InvalidValue),
    ],
)
async def test_a_bad_body_leaves_its_turn_to_others(exchange: Sent, error: type[ClientError]) -> None:
    bodies = Bodies(len(LONG) + 1, STALL_S)
    for _ in range(LONG_AT_ONCE + 1):
        with pytest.raises(error):
            async with bodies.read(exchange, json_object):
                pass
