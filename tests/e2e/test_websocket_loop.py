"""The WebSocket loop on a real socket: slow, silent, vanishing, pushing and refused clients."""

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from qwen3_asr_server.audio.decoder import StreamDecoder
from qwen3_asr_server.audio.timeline import Timeline
from qwen3_asr_server.domain import Hypothesis, Samples, StepKind
from qwen3_asr_server.frontends._ids import new_id
from qwen3_asr_server.frontends._websocket import serve_websocket
from qwen3_asr_server.messages import Command, Event, Finished
from qwen3_asr_server.protocols._base import Capabilities, Close, Handshake, IdFactory, Offers, SessionRequest
from qwen3_asr_server.protocols.dashscope_realtime import DashscopeRealtime
from support.audio_files import wav_bytes
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, FakeStream, Gated
from support.raw_client import RawClient, raw_client
from support.server import RunningServer, running_server, wait_until
from support.speech import pcm16

SPEECH = pcm16(np.full(16_000, 0.25, np.float32))
SILENCE = bytes(2 * 16_000)
COMPLETED = "conversation.item.input_audio_transcription.completed"
MANUAL = {"turn_detection": None}


def serving(engine: FakeEngine | None = None, **settings: Any) -> Any:
    return running_server(settings, engine=engine or FakeEngine(), vad=EnergyVad())


async def until(condition: Any) -> None:
    await asyncio.to_thread(wait_until, condition)


def sessions_ended(running: RunningServer, reason: str) -> float:
    return running.services.metrics.registry.get_sample_value("asr_sessions_total", {"reason": reason}) or 0.0


# Ordinary ends


@pytest.mark.parametrize("packet_bytes", [160, 3200, 400_000])
async def test_a_session_from_greeting_to_goodbye(packet_bytes: int) -> None:
    with serving() as running:
        async with raw_client(running.ws_url) as client:
            await client.read_until("session.created")
            await client.append((SILENCE + SPEECH + SILENCE + SILENCE) * 3, packet_bytes)
            await client.send("session.finish")
            await client.read_until("session.finished")
        assert [frame["type"] for frame in client.frames].count(COMPLETED) == 3
        assert client.socket.close_code == 1000
        await until(lambda: sessions_ended(running, "finished") == 1)


@pytest.mark.parametrize("packet_bytes", [44, 3200, 400_000])
async def test_samples_behind_a_wav_header_are_utterances_like_those_of_bare_pcm(packet_bytes: int) -> None:
    """Who reads a file and then a microphone: the header's size ends after a second, the sound does not."""
    live = SPEECH + 3 * SILENCE + SPEECH + 3 * SILENCE
    heard = []
    with serving() as running:
        for stream in (live, wav_bytes(np.full(16_000, 0.25, np.float32)) + live[len(SPEECH) :]):
            async with raw_client(running.ws_url) as client:
                await client.append(stream, packet_bytes)
                await client.read_until(COMPLETED)
                await client.read_until(COMPLETED)
                await client.send("session.finish")
                await client.read_until("session.finished")
            heard.append([frame.get("audio_start_ms") for frame in client.frames if "speech_started" in frame["type"]])
    assert heard[0] == heard[1]
    assert len(heard[0]) == 2


async def test_a_client_that_does_not_close_is_closed_after_the_grace() -> None:
    with serving(finish_grace_s=0.3) as running:
        async with raw_client(running.ws_url) as client:
            await client.send("session.finish")
            await client.append(SPEECH)  # too late, and to no effect
            await client.read_until("session.finished")
            await client.send("nonsense")
            with pytest.raises(ConnectionClosed):
                await client.read_until("anything")
        assert client.socket.close_code == 1000


async def test_within_the_grace_the_client_closes_first() -> None:
    with serving(finish_grace_s=600) as running:
        async with raw_client(running.ws_url) as client:
            await client.send("session.finish")
            await client.read_until("session.finished")
            await client.socket.close(1000, "thanks")
        await until(lambda: running.services.admission.in_use == 0)


async def test_a_finished_session_makes_room_while_its_socket_is_still_open() -> None:
    with serving(finish_grace_s=600, max_sessions=1) as running:
        async with raw_client(running.ws_url) as first:
            await first.send("session.finish")
            await first.read_until("session.finished")
            await until(lambda: running.services.admission.in_use == 0)
            assert running.services.pool.leases.count == 0
            async with raw_client(running.ws_url) as second:
                await second.append(SPEECH + SILENCE)
                await second.read_until(COMPLETED)
                await first.send("session.update", session={})  # read and ignored
            assert first.socket.close_code is None


async def test_too_many_errors_end_the_connection() -> None:
    with serving(max_errors=3) as running:
        async with raw_client(running.ws_url) as client:
            for _ in range(10):
                await client.socket.send("not json")
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
        assert client.socket.close_code == 1008
        assert [frame["type"] for frame in client.frames] == ["session.created"] + ["error"] * 3


async def test_an_unknown_model_is_told_and_closed() -> None:
    with serving() as running:
        async with raw_client(running.ws_url + "?model=nonesuch") as client:
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
        assert client.socket.close_code == 1008
        assert [frame["type"] for frame in client.frames] == ["error"]
        assert running.services.admission.in_use == 0


async def test_a_silent_client_is_told_and_closed() -> None:
    with serving(idle_timeout_s=0.2) as running:
        async with raw_client(running.ws_url) as client:
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
        assert client.frames[-1]["error"]["code"] == "idle_timeout"
        await until(lambda: sessions_ended(running, "idle") == 1)


# Overload


@pytest.mark.parametrize("limit", [{"max_sessions": 1}, {"max_sessions": 5, "max_sessions_per_key": 1}])
async def test_overload_is_an_error_that_clients_can_read(limit: dict[str, int]) -> None:
    headers = {"Authorization": "Bearer sk-1"}
    with serving(api_keys="sk-1", **limit) as running:
        async with raw_client(running.ws_url, additional_headers=headers) as first:
            await first.read_until("session.created")
            async with raw_client(running.ws_url, additional_headers=headers) as second:
                with pytest.raises(ConnectionClosed):
                    await second.read_until("never")
            (frame,) = second.frames
            assert (frame["type"], frame["error"]["code"]) == ("error", "Throttling")
            assert second.socket.close_code == 1013
            await first.send("session.finish")
            await first.read_until("session.finished")
        await until(lambda: running.services.admission.in_use == 0)
        async with raw_client(running.ws_url, additional_headers=headers) as third:
            await third.read_until("session.created")


# Clients that vanish


async def vanish(client: RawClient) -> None:
    """Cut the connection as a crash does: no close frame."""
    client.socket.transport.abort()


async def test_a_vanished_client_leaves_nothing_behind() -> None:
    engine = Gated()
    with serving(engine) as running:
        async with raw_client(running.ws_url) as client:
            await client.append(SPEECH)
            await until(lambda: engine.open_streams == 1)
            await vanish(client)
            await until(lambda: engine.open_streams == 0)
        await until(lambda: running.services.admission.in_use == 0)
        assert sessions_ended(running, "disconnected") == 1


async def test_others_are_undisturbed_by_it() -> None:
    with serving() as running:
        async with raw_client(running.ws_url) as staying:
            for _ in range(20):
                async with raw_client(running.ws_url) as leaving:
                    await leaving.append(SPEECH)
                    await vanish(leaving)
            await staying.append(SPEECH + SILENCE)
            assert (await staying.read_until(COMPLETED))["transcript"]
        await until(lambda: running.services.admission.in_use == 0)


# Back-pressure


async def test_a_pushing_client_is_slowed_down_and_loses_nothing() -> None:
    """Far more at once than socket buffers hold, Manual mode: the server stops reading, and answers all in the end."""
    engine = Gated()
    with serving(engine, decode_timeout_s=60, ping_interval_s=0.1) as running:
        async with raw_client(running.ws_url, max_queue=None) as client:
            await client.send("session.update", session=MANUAL)
            pushing = asyncio.create_task(client.append(SPEECH * 900, packet_bytes=32_000))
            await until(lambda: running.services.stats()["buffered_audio_s"] > 59)
            done, _ = await asyncio.wait({pushing}, timeout=1.0)  # ten ping periods
            assert not done, "the push is held up"
            assert running.services.stats()["buffered_audio_s"] < 70
            engine.open()
            await pushing
            await client.send("input_audio_buffer.commit")
            await client.send("session.finish")
            final = await client.read_until(COMPLETED)
            await client.read_until("session.finished")
        received_s = running.services.metrics.registry.get_sample_value("asr_audio_received_seconds_total")
    assert received_s == pytest.approx(900)
    assert final["transcript"]


class Chatty(FakeEngine):
    """Answers with a text that is too long to be swallowed by socket buffers."""

    def open_stream(self, options: Any) -> FakeStream:
        super().open_stream(options)
        return ChattyStream(self, options)


class ChattyStream(FakeStream):
    async def step(self, audio: Samples, kind: StepKind) -> Hypothesis | None:
        return Hypothesis(f"{len(audio)} " * 200_000, "en", final=kind is not StepKind.PARTIAL)


async def test_a_client_that_does_not_read_is_given_up() -> None:
    with serving(Chatty(), send_timeout_s=0.3, outbox_messages=8) as running:
        async with connect(running.ws_url, proxy=None, max_queue=1, max_size=None) as socket_:
            client = RawClient(socket_)
            pushing = asyncio.create_task(client.append((SPEECH + SILENCE) * 40, packet_bytes=32_000))
            await until(lambda: sessions_ended(running, "slow_client") == 1)
            await until(lambda: running.services.admission.in_use == 0)
            pushing.cancel()
            await asyncio.wait({pushing})
            await vanish(client)


async def test_a_large_append_holds_up_neither_the_loop_nor_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One append of 14 MiB: the loop takes in some seconds of it at a time, and no more than there is room for."""
    on_loop: dict[str, list[int]] = {"parse": [], "decode": [], "append": []}
    for owner, name in ((DashscopeRealtime, "parse"), (StreamDecoder, "decode"), (Timeline, "append")):
        monkeypatch.setattr(owner, name, noting_sizes_on_loop(owner.__dict__[name], on_loop[name]))
    engine = Gated()
    with serving(engine, decode_timeout_s=60) as running:
        async with raw_client(running.ws_url) as heavy, raw_client(running.ws_url) as light:
            await heavy.send("session.update", session=MANUAL)
            await heavy.append(SPEECH * 450, packet_bytes=len(SPEECH) * 450)
            await until(lambda: running.services.stats()["buffered_audio_s"] > 59)
            await light.send("session.update", session={})
            await light.read_until("session.updated")
            assert running.services.stats()["buffered_audio_s"] < 70
            engine.open()
            await light.append(SPEECH + SILENCE)
            await light.read_until(COMPLETED)
            await heavy.send("session.finish")
            await heavy.read_until("session.finished")
        received_s = running.services.metrics.registry.get_sample_value("asr_audio_received_seconds_total")
    assert received_s == pytest.approx(452)
    assert not [frame for frame in heavy.frames if frame["type"] == "error"]
    assert 0 < max(on_loop["parse"]) <= 256 * 1024
    assert 0 < max(on_loop["decode"]) <= 64 * 1024
    assert 0 < max(on_loop["append"]) <= 8 * 16_000


def noting_sizes_on_loop(function: Any, sizes: list[int]) -> Any:
    """Wrap a function or method that takes one sized thing last; note its size when an event loop runs it."""
    inner = function.__func__ if isinstance(function, staticmethod) else function

    def noting(*arguments: Any) -> Any:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            sizes.append(len(arguments[-1]))
        return inner(*arguments)

    return staticmethod(noting) if isinstance(function, staticmethod) else noting


async def test_a_paused_reader_survives_missing_pongs() -> None:
    """The client's pongs wait behind unread audio: no reason to close a healthy session (decision 11)."""
    engine = Gated()
    with serving(engine, decode_timeout_s=60, ping_interval_s=0.1) as running:
        async with raw_client(running.ws_url, ping_interval=None) as client:
            await client.send("session.update", session=MANUAL)
            pushing = asyncio.create_task(client.append(SPEECH * 600, packet_bytes=320_000))
            await until(lambda: running.services.stats()["buffered_audio_s"] > 59)
            done, _ = await asyncio.wait({pushing}, timeout=0.6)
            assert not done, "the push fills the sockets' buffers"
            assert running.services.admission.in_use == 1
            engine.open()
            await pushing
            await client.send("session.finish")
            await client.read_until("session.finished")


# Faults of ours


class Faulty:
    """A protocol with a bug in one place."""

    name = "faulty"
    path = "/faulty"
    where = ""

    def __init__(self, handshake: Handshake, offers: Offers, new_id: IdFactory) -> None:
        self._inner = DashscopeRealtime(handshake, offers, new_id)

    def session_to_open(self) -> SessionRequest | None:
        return self._inner.session_to_open()

    @staticmethod
    def parse(message: str | bytes) -> Any:
        return DashscopeRealtime.parse(message)

    def receive(self, parsed: Any) -> None:
        if self.where == "receive":
            raise RuntimeError("/home/secret")
        self._inner.receive(parsed)

    def commands_received(self) -> list[Command]:
        return self._inner.commands_received()

    def send_event(self, event: Event) -> None:
        if self.where == "send_event" and isinstance(event, Finished):
            raise RuntimeError("/home/secret")
        self._inner.send_event(event)

    def messages_to_send(self) -> list[str | bytes]:
        return self._inner.messages_to_send()

    def errors_told(self) -> list[str]:
        return self._inner.errors_told()

    @property
    def close_expected(self) -> Close | None:
        return self._inner.close_expected


@pytest.mark.parametrize("where", ["receive", "send_event"])
async def test_a_fault_in_a_protocol_ends_one_connection(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Faulty, "where", where)
    with serving() as running:
        app = running.server.config.app
        capabilities = Capabilities("none", frozenset({"en"}), "en")

        async def endpoint(websocket: WebSocket) -> None:
            await serve_websocket(websocket, Faulty, running.services, lambda _: capabilities)

        app.router.add_websocket_route("/faulty", endpoint)
        app.router.routes.insert(0, app.router.routes.pop())
        url = running.http_url.replace("http", "ws") + "/faulty"
        async with raw_client(running.ws_url) as healthy, raw_client(url) as client:
            await client.send("session.finish")
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
            assert client.socket.close_code == 1011
            assert "secret" not in json.dumps(client.frames)
            await healthy.append(SPEECH + SILENCE)
            await healthy.read_until(COMPLETED)
        await until(lambda: running.services.admission.in_use == 0)
    assert "secret" in caplog.text


async def test_garbage_and_half_open_sockets_leave_nothing_behind() -> None:
    with serving() as running:
        address = running.http_url.removeprefix("http://").split(":")
        for payload in (b"\x00" * 100, b"GET /api-ws/v1/realtime HTTP/1.1\r\n", b""):
            with socket.create_connection((address[0], int(address[1]))) as raw:
                raw.sendall(payload)
        async with raw_client(running.ws_url) as client:
            for junk in (b"\xff\xfe", b"", "", "[]", "{}", '{"type": 7}', "\ud83d".encode("utf-8", "replace")):
                await client.socket.send(junk)
            await client.append(SPEECH + SILENCE)
            await client.read_until(COMPLETED)


def test_ids_are_new_and_of_the_vendors_shape() -> None:
    ids = {new_id("event_") for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(text) == 27 and text.startswith("event_") and text[6:].isalnum() for text in ids)
