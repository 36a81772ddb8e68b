"""Models from outside: chosen by name, switched, released and loaded again, and what an engine's death looks like."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from qwen3_asr_server.engines._base import EngineOptions
from support.energy_vad import EnergyVad
from support.invariants import COMPLETED, FAILED
from support.lives import MortalEngine
from support.raw_client import RawClient, raw_client
from support.server import RunningServer, running_server, wait_until
from support.speech import pcm16
from support.task_client import task_client

SPEECH = pcm16(np.full(16_000, 0.25, np.float32))
SILENCE = bytes(2 * 16_000)
TEXT = "conversation.item.input_audio_transcription.text"


@dataclass
class GatedEngine(MortalEngine):
    """Starts when it is allowed to, which it is at first."""

    allowed: threading.Event = field(default_factory=threading.Event)

    async def start(self) -> None:
        assert await asyncio.to_thread(self.allowed.wait, 30)
        await super().start()


@dataclass
class House:
    """A server whose models are called `big`, the default, and `small`."""

    running: RunningServer
    engines: dict[str, GatedEngine]

    @property
    def url(self) -> str:
        return self.running.ws_url

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, f"{self.running.http_url}{path}", trust_env=False, timeout=10, **options)

    def model(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/health").json()["model"])

    def nobody_left(self) -> None:
        wait_until(lambda: self.model()["leases"] == 0)


@contextmanager
def house(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[House]:
    engines: dict[str, GatedEngine] = {}

    def build(name: str, options: EngineOptions) -> GatedEngine:
        engine = engines[options.model_path] = GatedEngine(options, name=options.model_path)
        engine.allowed.set()
        return engine

    monkeypatch.setattr("qwen3_asr_server.runtime.models.load_engine", build)
    known = {"engine": "vllm", "qwen3_asr_model_path": "big", "qwen3_asr_other_models": "small"}
    with running_server({**known, **settings}, vad=EnergyVad()) as running:
        try:
            yield House(running, engines)
        finally:
            for engine in engines.values():
                engine.allowed.set()


async def transcribed(client: RawClient) -> str:
    await client.append(SPEECH + SILENCE)
    return str((await client.read_until(COMPLETED))["transcript"])


@asynccontextmanager
async def session(house: House, model: str | None = None) -> AsyncIterator[RawClient]:
    async with raw_client(house.url if model is None else f"{house.url}?model={model}") as client:
        created = await client.read_until("session.created")
        assert model in (None, created["session"]["model"])
        yield client


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (None, "big"),
        ("qwen3-asr-flash-realtime", "big"),
        ("qwen3-asr-flash-realtime-2025-10-27", "big"),
        ("fake", "big"),
        ("big", "big"),
        ("small", "small"),
    ],
)
async def test_a_model_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch, asked: str | None, served: str) -> None:
    with house(monkeypatch) as there:
        async with session(there, asked) as client:
            assert await transcribed(client)
            model = await asyncio.to_thread(there.model)
        assert (model["model"], model["phase"]) == (served, "ready")
        assert [name for name, engine in there.engines.items() if engine.up] == [served]


async def test_an_unknown_name_is_refused_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        async with raw_client(f"{there.url}?model=tiny") as client:
            error = await client.read_until("error")
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
        assert error["error"]["code"] == "Model.NotExist"
        assert "small" in error["error"]["message"]
        assert there.engines["big"].starts == 1
        assert there.engines["small"].starts == 0


async def test_a_task_names_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        there.running.services.pool.leases._wait_s = 0.3
        async with task_client(there.running) as first, task_client(there.running) as second:
            for model in ("small", "fun-asr-realtime", "small"):
                assert (await first.run(model=model))["header"]["event"] == "task-started"
                await first.speak(SPEECH + 2 * SILENCE)
                await first.finish()
                assert [name for name, engine in there.engines.items() if engine.up] == [
                    "small" if model == "small" else "big"
                ]
            assert len(first.finals) == 3
            await first.run(model="small")
            refused = await second.run(model="big")
        assert refused["header"]["error_code"] == "Throttling"


async def test_a_switch_waits_for_sessions_then_is_refused_before_the_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        there.running.services.pool.leases._wait_s = 0.3
        async with session(there) as client:
            with pytest.raises(InvalidStatus) as refused:
                async with raw_client(f"{there.url}?model=small"):
                    pytest.fail("a session lost its model")
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "5"
            assert await transcribed(client)
        metrics = await asyncio.to_thread(there.ask, "GET", "/metrics")
        assert 'asr_sessions_refused_total{reason="model_in_use"} 1.0' in metrics.text


async def test_who_waits_for_a_switch_is_served_when_the_last_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        async with session(there) as client:
            waiting = asyncio.create_task(use_small(there))
            await asyncio.to_thread(wait_until, lambda: there.running.services.pool.leases._waiting == 1)
            assert await transcribed(client)
        await waiting
        assert not there.engines["big"].up


async def use_small(there: House) -> None:
    async with session(there, "small") as client:
        assert await transcribed(client)
        ready = await asyncio.to_thread(there.ask, "GET", "/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "full"), "the default would have to wait"


async def test_who_gives_up_waiting_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        async with session(there) as client:
            with pytest.raises(TimeoutError):
                async with raw_client(f"{there.url}?model=small", open_timeout=0.3):
                    pytest.fail("a session lost its model")
            assert await transcribed(client)
        await asyncio.to_thread(wait_until, lambda: there.running.services.pool.leases._waiting == 0)
        await asyncio.to_thread(there.nobody_left)
        async with session(there) as client:
            assert await transcribed(client)


async def test_a_released_model_comes_back_with_the_next_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        engine = there.engines["big"]
        async with session(there) as client:
            assert await transcribed(client)
            refused = await asyncio.to_thread(there.ask, "POST", "/api/gpu-offload")
            assert (refused.status_code, refused.json()["code"]) == (503, "Throttling")
            assert refused.headers["Retry-After"] == "5"
            assert await transcribed(client)
        await asyncio.to_thread(there.nobody_left)
        answer = await asyncio.to_thread(there.ask, "POST", "/api/gpu-offload")
        assert (answer.status_code, answer.json()["released"]) == (200, True)
        assert answer.json()["model"]["phase"] == "unloaded"
        assert not engine.up
        again = await asyncio.to_thread(there.ask, "POST", "/api/gpu-offload")
        assert again.json()["released"] is False
        assert (await asyncio.to_thread(there.ask, "GET", "/health/ready")).status_code == 200
        async with session(there) as client:
            assert await transcribed(client)
        assert engine.starts == 2


def test_releasing_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch, api_keys="sk-right") as there:
        assert there.ask("POST", "/api/gpu-offload").status_code == 401
        assert there.engines["big"].up
        foreign = {"Authorization": "Bearer sk-right", "Origin": "https://elsewhere.example"}
        assert there.ask("POST", "/api/gpu-offload", headers=foreign).status_code == 403
        assert there.ask("POST", "/api/gpu-offload", headers={"Authorization": "Bearer sk-right"}).status_code == 200


async def test_a_dead_engine_fails_what_was_open_and_the_socket_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch) as there:
        engine = there.engines["big"]
        async with session(there) as client:
            await client.append(SPEECH * 2)
            await client.read_until(TEXT)
            engine.allowed.clear()
            engine.dead = True
            await asyncio.to_thread(wait_until, lambda: there.running.services.status == "restarting")
            ready = await asyncio.to_thread(there.ask, "GET", "/health/ready")
            alive = await asyncio.to_thread(there.ask, "GET", "/health/live")
            await client.append(SILENCE)
            failed = await client.read_until(FAILED)
            assert failed["error"]["code"] == "InternalError"
            await client.append(SPEECH + SILENCE)
            await client.read_until("input_audio_buffer.committed")
            engine.allowed.set()
            assert (await client.read_until(COMPLETED))["transcript"]
            kinds = [frame["type"] for frame in client.frames]
            assert kinds.index(FAILED) < kinds.index(COMPLETED)
        assert ready.status_code == 503
        body = ready.json()
        assert (body["status"], body["model"]["phase"], body["model"]["attempt"]) == ("restarting", "restarting", 1)
        assert body["reason"]
        assert alive.status_code == 200
        stats = (await asyncio.to_thread(there.ask, "GET", "/stats")).json()
        assert stats["engine_counters"] == {"starts": 2}
        assert "asr_engine_deaths_total 1.0" in (await asyncio.to_thread(there.ask, "GET", "/metrics")).text


async def test_progress_of_a_load_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(monkeypatch, model_loading="lazy") as there:
        there.engines["big"].allowed.clear()
        assert (await asyncio.to_thread(there.model))["phase"] == "unloaded"
        async with session(there) as client:
            await asyncio.to_thread(wait_until, lambda: there.running.services.status == "loading")
            ready = await asyncio.to_thread(there.ask, "GET", "/health/ready")
            assert ready.status_code == 503
            model = ready.json()["model"]
            assert (model["phase"], model["model"], model["attempt"]) == ("loading", "big", 1)
            assert model["since_s"] >= 0
            there.engines["big"].allowed.set()
            assert await transcribed(client)
        assert (await asyncio.to_thread(there.ask, "GET", "/health/ready")).status_code == 200
