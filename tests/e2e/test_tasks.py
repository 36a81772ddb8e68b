"""The run-task door on a real socket: one connection, one task after the other, and every way that it can end."""

import asyncio
import contextlib
import json
import threading
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from qwen3_asr_server.frontends import _websocket
from qwen3_asr_server.logs import JsonFormatter
from qwen3_asr_server.messages import Event, Partial
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, Gated
from support.raw_client import raw_client
from support.server import RunningServer, running_server, wait_until
from support.speech import pcm16
from support.task_client import TaskClient, task_client

SPEECH = pcm16(np.full(16_000, 0.25, np.float32))
SILENCE = bytes(2 * 16_000)
UTTERANCE = SPEECH + 2 * SILENCE


def serving(engine: FakeEngine | None = None, **settings: Any) -> Any:
    return running_server(settings, engine=engine or FakeEngine(), vad=EnergyVad())


async def until(condition: Any) -> None:
    await asyncio.to_thread(wait_until, condition)


def in_use(running: RunningServer) -> int:
    return running.services.admission.in_use


def is_free(running: RunningServer) -> bool:
    """Tell whether no session has a place or a model."""
    return in_use(running) == running.services.pool.leases.count == 0


def event_of(frame: dict[str, Any]) -> tuple[str, str]:
    return frame["header"]["event"], frame["header"]["task_id"]


def code_of(frame: dict[str, Any]) -> str:
    assert frame["header"]["event"] == "task-failed", frame
    assert frame["header"]["error_message"]
    return str(frame["header"]["error_code"])


async def closed(client: TaskClient) -> int | None:
    """Read what is left; return the code of the close."""
    with pytest.raises(ConnectionClosed):
        await client.read_until_event("never")
    return client.socket.close_code


@pytest.mark.parametrize("packet_bytes", [320, 12_800, 400_000])
async def test_tasks_one_after_the_other(packet_bytes: int) -> None:
    """Each has its sentences, from 1; a connection between two of them takes nobody's place."""
    with serving(max_sessions=1) as running:
        async with task_client(running) as client:
            for task_id in ("first", "second", "second"):
                assert event_of(await client.run(task_id)) == ("task-started", task_id)
                assert in_use(running) == 1
                await client.speak(UTTERANCE * 2, packet_bytes)
                last = await client.finish(task_id)
                assert (event_of(last), last["payload"]["output"]) == (("task-finished", task_id), {})
                await until(lambda: is_free(running))
            assert [(final["task"], final["sentence_id"]) for final in client.finals] == [
                *(("first", 1), ("first", 2)),
                *(("second", 1), ("second", 2)) * 2,
            ]
            assert all(final["text"] for final in client.finals)
        assert client.socket.close_code == 1000


async def test_a_task_may_be_asked_for_without_waiting_for_the_end_of_a_silent_one() -> None:
    with serving() as running:
        async with task_client(running) as client:
            await client.run("silent")
            await client.act("finish-task", "silent")
            await client.ask("next")
            assert event_of(await client.read_event()) == ("task-finished", "silent")
            assert event_of(await client.read_event()) == ("task-started", "next")
            await client.speak(UTTERANCE)
            await client.finish("next")
            assert [final["task"] for final in client.finals] == ["next"]


async def test_while_a_task_has_something_to_tell_no_other_begins() -> None:
    engine = Gated()
    with serving(engine) as running:
        async with task_client(running) as client:
            await client.run("first")
            await client.speak(SPEECH)
            await client.act("finish-task", "first")
            assert code_of(await client.run("second")) == "InvalidParameter"
            engine.open()
            assert event_of(await client.read_until_event("task-finished"))[1] == "first"
            assert [final["task"] for final in client.finals] == ["first"]
            assert event_of(await client.run("second")) == ("task-started", "second")


async def test_a_connection_that_is_not_used_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_websocket, "_UNUSED_S", 0.5)
    with serving() as running:
        async with task_client(running) as never, task_client(running) as client:
            await client.run()
            assert await closed(never) == 1000
            with pytest.raises(TimeoutError):  # the task keeps it open
                await asyncio.wait_for(client.read_event(), 0.7)
            await client.finish()
            assert await closed(client) == 1000


@pytest.mark.parametrize("unheard", [b"", bytes(1), SILENCE * 5], ids=["nothing", "half a sample", "silence"])
async def test_a_task_without_speech_has_no_sentences(unheard: bytes) -> None:
    with serving() as running:
        async with task_client(running) as client:
            await client.run()
            await client.speak(unheard)
            assert event_of(await client.finish())[0] == "task-finished"
            assert client.finals == []


async def test_a_full_server_says_so() -> None:
    with serving(max_sessions=1) as running:
        async with task_client(running) as first, task_client(running) as second:
            await first.run()
            assert code_of(await second.run()) == "Throttling"
            assert await closed(second) == 1013
            assert [event_of(frame)[0] for frame in second.frames] == ["task-failed"]
            await first.speak(UTTERANCE)
            assert event_of(await first.finish())[0] == "task-finished"
            async with task_client(running) as third:
                assert event_of(await third.run())[0] == "task-started"


async def test_connections_without_a_task_are_bounded() -> None:
    """Four for each session that there may be; the next is refused before the upgrade."""
    with serving(max_sessions=1) as running:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(task_client(running))
            with pytest.raises(InvalidStatus) as refused:
                await stack.enter_async_context(task_client(running))
            assert refused.value.response.status_code == 503
            async with raw_client(running.ws_url) as realtime:
                await realtime.read_until("session.created")
        await until(lambda: running.services.connections.in_use == 0)
        async with task_client(running) as client:
            await client.run()


async def test_the_log_names_tasks_and_says_why_a_connection_was_closed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    caplog.handler.setFormatter(JsonFormatter())
    with serving() as running:
        async with task_client(running) as client:
            await client.run("the first")
            await client.finish("the first")
            await client.run("the second", model="nonesuch")
            await client.socket.wait_closed()
        await until(lambda: "connection closed" in caplog.text)
    lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    assert [line["task"] for line in lines if line["message"].startswith("session ")] == ["the first"] * 2
    (closed,) = [line for line in lines if line["message"] == "connection closed"]
    assert (closed["close_code"], closed["close_reason"]) == (1008, "Model.NotExist")


async def test_a_silent_task_is_told_and_closed() -> None:
    with serving(idle_timeout_s=0.2) as running:
        async with task_client(running) as client:
            await client.run()
            assert code_of(await client.read_event()) == "CLIENT_ERROR"
            assert await closed(client) == 1008
        await until(lambda: in_use(running) == 0)


async def test_what_cannot_be_decoded_fails_after_what_was_heard() -> None:
    """Nobody sends a word after it: the failure comes by itself."""
    with serving(max_append_s=5) as running:
        async with task_client(running) as client:
            await client.run()
            await client.speak(UTTERANCE)
            await client.speak(UTTERANCE * 10, len(UTTERANCE) * 10)
            assert code_of(await client.read_until_event("task-failed")) == "InvalidParameter"
            assert await closed(client) == 1008
            assert [final["sentence_id"] for final in client.finals] == [1]
        await until(lambda: in_use(running) == 0)


async def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    engine = FakeEngine()
    with serving(engine) as running:
        async with task_client(running) as client:
            await client.run()
            await client.speak(SPEECH)
            await until(lambda: engine.open_streams == 1)
            client.socket.transport.abort()
            await until(lambda: engine.open_streams == 0 and in_use(running) == 0)
        async with task_client(running) as client:
            await client.run()
            await client.finish()
            client.socket.transport.abort()
        await until(lambda: running.services.connections.in_use == 0)


async def test_a_client_that_reads_slowly_is_told_of_the_beginning_of_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer interim results take the place of those that wait, but not of the first."""
    reads, shown = threading.Event(), 0
    send, emit = _websocket._Connection._send, _websocket._Connection._emit

    async def send_slowly(connection: Any, message: str | bytes) -> None:
        await asyncio.to_thread(reads.wait)
        await send(connection, message)

    def emit_counted(connection: Any, event: Event) -> None:
        nonlocal shown
        emit(connection, event)
        shown += isinstance(event, Partial)

    monkeypatch.setattr(_websocket._Connection, "_send", send_slowly)
    monkeypatch.setattr(_websocket._Connection, "_emit", emit_counted)
    with serving() as running:
        async with task_client(running) as client:
            await client.act("run-task", model="fun-asr-realtime")
            for partials in 1, 2, 3:
                await client.speak(SPEECH)
                await until(lambda partials=partials: shown >= partials)
            reads.set()
            await client.finish()
    begins = [frame["payload"]["output"]["sentence"]["sentence_begin"] for frame in client.frames[1:-1]]
    assert begins == [True, False, False], "the first, the newest and the final"


async def test_no_task_begins_for_a_client_that_is_gone() -> None:
    """It asked for the next task as it left; nobody would end that one."""
    with serving() as running:
        async with task_client(running) as client:
            await client.run("first")
            protocol = client.socket.protocol
            for message in ("finish-task", "first"), ("run-task", "second"):
                header = dict(zip(("action", "task_id"), message, strict=True))
                protocol.send_text(json.dumps({"header": header, "payload": {"model": "fun-asr-realtime"}}).encode())
            protocol.send_binary(2 * SILENCE)  # decoded on a thread, while the connection ends
            protocol.send_close(1000)
            client.socket.transport.write(b"".join(protocol.data_to_send()))
        await until(lambda: is_free(running))


async def test_a_server_that_shuts_down_tells_what_it_heard() -> None:
    """And fails the task, as not all of it was heard; a connection without one is just closed."""
    with serving() as running:
        async with task_client(running) as client, task_client(running) as waiting:
            await client.run()
            await client.speak(SPEECH)
            await client.read_until_event("result-generated")
            running.server.should_exit = True
            assert code_of(await client.read_until_event("task-failed")) == "ServiceUnavailable"
            assert len(client.finals) == 1
            await client.socket.wait_closed()
            await waiting.socket.wait_closed()
        await until(lambda: not running.thread.is_alive())
    assert (client.socket.close_code, waiting.socket.close_code) == (1001, 1012)


async def test_no_task_begins_while_the_server_shuts_down() -> None:
    with serving(Gated(), shutdown_timeout_s=1) as running:
        async with task_client(running) as held, task_client(running) as late:
            await held.run()
            await held.speak(UTTERANCE)
            running.server.should_exit = True
            await until(lambda: running.services.state == "draining")
            assert code_of(await late.run()) == "ServiceUnavailable"
            assert await closed(late) == 1001
            assert code_of(await held.read_until_event("task-failed")) == "ServiceUnavailable"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not json", "InvalidParameter"),
        (b"\x01\x02", "InvalidParameter"),
        ("[" * 100_000, "InvalidParameter"),
        ('{"header": {"task_id": "t", "action": "dance"}}', "InvalidParameter"),
        ('{"header": {"task_id": "t", "action": "finish-task"}}', "InvalidParameter"),
        ('{"header": {"task_id": "t", "action": "run-task"}, "payload": {"model": "nonesuch"}}', "Model.NotExist"),
    ],
    ids=["text", "audio", "deep", "action", "no such task", "no such model"],
)
async def test_what_is_no_task_is_told_and_closed(message: str | bytes, code: str) -> None:
    with serving() as running:
        async with task_client(running) as client:
            await client.socket.send(message)
            assert code_of(await client.read_event()) == code
            assert await closed(client) == 1008
        assert in_use(running) == 0
        told = running.services.metrics.registry.get_sample_value("asr_errors_total", {"code": code})
    assert told == 1
