"""Ten thousand bad frames: each is answered by an error or a close, memory stays flat, nobody else notices.

Nor does anybody notice a flood of good ones.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from support import speech
from support.invariants import assert_finished
from support.process import ServerProcess, running_server
from support.raw_client import RawClient, raw_client

FRAMES = 10_000
AT_A_TIME = 90
"""Frames a connection: a hundred errors in a row would end it."""
ALLOWED_GROWTH_BYTES = 24 * 1024 * 1024
"""Allocators keep some; 10,000 frames of which a few are 20 MiB would be over a gigabyte."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server() as running:
        yield running


def bad_frame(rng: Random) -> str | bytes:
    """Return a message that no client of the protocol would send."""
    kinds = [
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: rng.randbytes(rng.randrange(200)).decode("latin-1"),
        lambda: json.dumps(rng.choice([None, 3, "x", [], [[]], True, 1e308])),
        lambda: json.dumps({"type": rng.choice([None, 1, {}, [], "", "x" * 5000, "session.created", "\ud800"])}),
        lambda: json.dumps({"type": "input_audio_buffer.append", "audio": rng.choice(BAD_AUDIO)}),
        lambda: json.dumps({"type": "session.update", "session": rng.choice(BAD_SESSIONS)}),
        lambda: '{"type": "session.update", "session": {"sample_rate": ' + "9" * rng.randrange(10, 6000) + "}}",
        lambda: "[" * rng.randrange(1, 20_000),
        lambda: '{"type": "session.update", "session": ' + '{"a":' * rng.randrange(1, 5000),
        lambda: json.dumps({"type": "input_audio_buffer.append"})[: rng.randrange(1, 30)],
    ]
    return rng.choice(kinds)()


BAD_AUDIO: list[Any] = [None, 7, [], {}, "!", "ab=c", "é" * 50, "A" * 5, {"a": "b"}]
BAD_SESSIONS: list[Any] = [
    None,
    [],
    "x",
    {"input_audio_format": "mp3"},
    {"input_audio_format": 5},
    {"sample_rate": -1},
    {"sample_rate": 1e300},
    {"sample_rate": True},
    {"turn_detection": []},
    {"turn_detection": {"type": "semantic_vad"}},
    {"turn_detection": {"threshold": "NaN"}},
    {"turn_detection": {"threshold": 2}},
    {"turn_detection": {"silence_duration_ms": 10**30}},
    {"input_audio_transcription": {"language": "tlh"}},
    {"input_audio_transcription": {"language": 3}},
    {"input_audio_transcription": {"corpus": {"text": {}}}},
    {"input_audio_transcription": {"corpus": {"text": "x" * 500_000}}},
]


async def abuse(url: str, rng: Random, count: int) -> int:
    """Send bad frames on one connection, and return how many were answered by an error.

    Good ones come between them: the server has no reason to close, and if it does, that is an error here.
    """
    async with raw_client(url) as client:
        await client.read_until("session.created")
        for number in range(count):
            await client.socket.send(bad_frame(rng))
            await client.read_until("error")
            if number % 10 == 0:  # still there, and in order
                await still_serves(client)
        return [frame["type"] for frame in client.frames].count("error")


def close_code(closed: ConnectionClosed) -> int | None:
    return closed.rcvd.code if closed.rcvd else None


async def converse(url: str, stop: asyncio.Event) -> list[list[str]]:
    """Talk sense on connection after connection until told to stop; return what was understood."""
    clip = speech.clip("conf-onlyperson")
    understood = []
    while not stop.is_set():
        async with raw_client(url) as client:
            await client.append(clip.pcm16)
            await client.send("session.finish")
            await client.read_until("session.finished")
            assert_finished(client.frames)
            understood.append([f["transcript"] for f in client.frames if f["type"].endswith("completed")])
    return understood


@pytest.fixture
async def neighbour(server: ServerProcess) -> AsyncIterator["asyncio.Task[list[list[str]]]"]:
    """A well-behaved client beside the abuse; its sessions must all come out the same."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(converse(server.url, stop))
        yield task
        stop.set()
    understood = task.result()
    assert all(texts == understood[0] for texts in understood)
    assert understood[0]


async def test_memory_stays_flat_over_ten_thousand_bad_frames(
    server: ServerProcess, neighbour: "asyncio.Task[list[list[str]]]"
) -> None:
    rng = Random(20261121)
    answered = [await abuse(server.url, rng, AT_A_TIME) for _ in range(10)]
    before = resident_bytes(server)
    while sum(answered) < FRAMES:
        answered.append(await abuse(server.url, rng, AT_A_TIME))
        assert answered[-1] == AT_A_TIME
    assert not neighbour.done()
    assert resident_bytes(server) - before < ALLOWED_GROWTH_BYTES
    assert server.get("/stats")["sessions"]["open"] <= 1


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("A" * (24 * 1024 * 1024 + 1), id="text over the limit"),
        pytest.param(b"\0" * (24 * 1024 * 1024 + 1), id="bytes over the limit"),
        pytest.param(
            json.dumps({"type": "input_audio_buffer.append", "audio": "A" * (23 * 1024 * 1024)}), id="append too long"
        ),
        pytest.param("[" * (24 * 1024 * 1024), id="brackets"),
        pytest.param('{"a":' * (4 * 1024 * 1024), id="objects"),
        pytest.param("[" + "1," * (11 * 1024 * 1024) + "1]", id="many small values"),
    ],
)
async def test_messages_of_24_mib_end_in_an_error_or_a_close(
    server: ServerProcess, neighbour: "asyncio.Task[list[list[str]]]", payload: str | bytes
) -> None:
    async with raw_client(server.url) as client:
        await client.read_until("session.created")
        try:
            await client.socket.send(payload)
            error = await client.read_until("error")
            assert error["error"]["type"] == "invalid_request_error"
            await still_serves(client)
            code = None
        except ConnectionClosed as closed:
            code = close_code(closed)
    assert code in (None, 1009)
    assert not neighbour.done()


async def test_the_largest_legal_append_is_served(server: ServerProcess) -> None:
    silence = base64.b64encode(bytes(15 * 1024 * 1024)).decode()
    async with raw_client(server.url) as client:
        await client.send("input_audio_buffer.append", audio=silence)
        await still_serves(client)
        await client.send("session.finish")
        await client.read_until("session.finished")
        assert [frame["type"] for frame in client.frames if frame["type"] == "error"] == []


def frames(*kinds: str) -> bytes:
    """Return messages as they look on the socket, so that sending them in a flood costs this process nothing."""
    audio = base64.b64encode(b"\0\0").decode()
    events = [{"type": kind, "audio": audio, "session": {}} for kind in kinds]
    return b"".join(Frame(Opcode.TEXT, json.dumps(event).encode()).serialize(mask=True) for event in events)


async def round_trip_s(client: RawClient) -> float:
    began = time.perf_counter()
    await still_serves(client)
    return time.perf_counter() - began


def p95(times_s: list[float]) -> float:
    return sorted(times_s)[int(0.95 * len(times_s))]


@pytest.mark.parametrize(
    ("kinds", "times"),
    [
        pytest.param(["input_audio_buffer.append"], 15_000, id="appends"),
        pytest.param(["input_audio_buffer.append", "input_audio_buffer.commit"], 800, id="commits"),
    ],
)
async def test_an_unpaced_flood_of_tiny_messages_holds_nobody_up(
    server: ServerProcess, kinds: list[str], times: int
) -> None:
    async with raw_client(server.url) as bystander, raw_client(server.url, max_queue=None) as flooder:
        await flooder.send("session.update", session={"turn_detection": None})
        quiet_s = [await round_trip_s(bystander) for _ in range(100)]
        flooder.socket.transport.write(frames(*kinds) * times + frames("the.end"))
        flooded_s: list[float] = []
        async with asyncio.TaskGroup() as group:
            end = group.create_task(flooder.read_until("error"))
            while not end.done():
                flooded_s.append(await round_trip_s(bystander))
        committed = [frame for frame in flooder.frames if frame["type"] == "input_audio_buffer.committed"]
        assert end.result()["error"]["code"] == "invalid_event", "all that came before was accepted"
    if "input_audio_buffer.commit" in kinds:
        assert len(committed) >= times - 50, "what is accepted is soon obeyed"
    assert len(flooded_s) >= 10
    assert p95(flooded_s) < 0.25 + 5 * p95(quiet_s)


async def still_serves(client: RawClient) -> None:
    await client.send("session.update", session={})
    await client.read_until("session.updated")


def resident_bytes(server: ServerProcess) -> int:
    with open(f"/proc/{server.process.pid}/statm") as statm:  # noqa: PTH123 - not a file of ours
        return int(statm.read().split()[1]) * 4096
