"""Operating the server: what it says about itself, who may come in, how it starts and how it stops."""

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from qwen3_asr_server import __version__
from qwen3_asr_server.config import Settings
from qwen3_asr_server.errors import EngineError, EngineNotReady
from support.children import ended_within
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, Gated
from support.invariants import Frame
from support.raw_client import RawClient, raw_client
from support.server import ChildServer, RunningServer, child_server, running_server, wait_until
from support.speech import clip, pcm16

KEY = "sk-right"
BEARER = {"Authorization": f"Bearer {KEY}"}
SPEECH = pcm16(np.full(16_000, 0.25, np.float32))
SILENCE = bytes(2 * 16_000)


def fake_server(engine: FakeEngine | None = None, *, wait: bool = True, **settings: Any) -> Any:
    return running_server(settings, engine=engine or FakeEngine(), vad=EnergyVad(), wait=wait)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with fake_server() as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    with fake_server(api_keys=f"other,{KEY}", ticket_ttl_s=45) as running:
        yield running


def ask(method: str, url: str, **options: Any) -> httpx.Response:
    return httpx.request(method, url, trust_env=False, timeout=10, **options)


def get(url: str, **options: Any) -> httpx.Response:
    return ask("GET", url, **options)


def post(url: str, **options: Any) -> httpx.Response:
    return ask("POST", url, **options)


async def refusal(url: str, **options: Any) -> tuple[int, dict[str, str]]:
    """Open a WebSocket, expect to be refused, return the status and the JSON body."""
    with pytest.raises(InvalidStatus) as caught:
        async with raw_client(url, **options):
            pass
    response = caught.value.response
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, json.loads(response.body)


async def speak(client: RawClient) -> None:
    """Send a second of speech and enough silence to end it."""
    await client.read_until("session.created")
    await client.append(SPEECH + SILENCE)


# What it says about itself


def test_service_info(server: RunningServer) -> None:
    answer = get(server.http_url)
    info = answer.json()
    assert answer.headers["vary"] == "Accept"
    assert (info["version"], info["status"], info["auth_required"]) == (__version__, "ready", False)
    assert info["models"] == ["none"]
    assert info["engine"] == {
        "name": "fake",
        "model": "none",
        "description": "Names the loudness of what it hears; for tests.",
        "production": False,
        "languages": ["en", "zh"],
        "default_language": "en",
        "word_times": True,
        "context": False,
    }
    assert info["endpoints"]["dashscope_realtime"] == server.ws_url
    assert info["demo"] == {"silence_duration_ms": 400}


def test_the_announced_addresses_answer(server: RunningServer) -> None:
    paths = [path for path in get(server.http_url).json()["endpoints"].values() if path.startswith("/")]
    vendor = "/api/v1/services"
    doors = {
        "/api/tickets",
        "/api/transcribe",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        f"{vendor}/aigc/multimodal-generation/generation",
        f"{vendor}/audio/asr/transcription",
    }
    assert {"/health", "/metrics", "/stats", "/docs", "/demo", *doors} == set(paths)
    assert {get(server.http_url + path).status_code for path in paths} == {200, 405}


def test_service_info_behind_a_proxy_with_tls(server: RunningServer) -> None:
    headers = {"Host": "asr.example.com", "X-Forwarded-Proto": "https"}
    info = get(server.http_url, headers=headers).json()
    assert info["endpoints"]["dashscope_realtime"] == "wss://asr.example.com/api-ws/v1/realtime"


def test_a_browser_is_sent_to_the_demo(server: RunningServer) -> None:
    answer = get(
        server.http_url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, follow_redirects=True
    )
    assert answer.url.path == "/demo"
    assert answer.headers["content-type"].startswith("text/html")


def test_health_tells_everything(server: RunningServer) -> None:
    health = get(f"{server.http_url}/health").json()
    assert (health["status"], health["reason"], health["version"]) == ("ready", None, __version__)
    assert health["engine"]["name"] == "fake"
    assert health["vad"] == "energy"
    assert health["sessions"] == {"open": 0, "max": 128}
    assert health["limits"]["max_message_bytes"] == 24 * 1024 * 1024
    assert health["limits"]["max_utterance_s"] == 60
    assert len(health["warnings"]) == 1
    assert "not for production" in health["warnings"][0]


def test_health_warns_of_an_open_door() -> None:
    # Binding is the command line's business; the settings alone are what is warned about.
    with fake_server(server_host="0.0.0.0") as running:
        warnings = get(f"{running.http_url}/health").json()["warnings"]
    assert "API_KEYS" in warnings[0]


def test_probes(server: RunningServer) -> None:
    assert get(f"{server.http_url}/health/live").json() == {"status": "live"}
    ready = get(f"{server.http_url}/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["model"]["phase"] == "ready"


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready"])
def test_heads(guarded: RunningServer, path: str) -> None:
    answer = ask("HEAD", guarded.http_url + path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_request_at_the_sockets_door_is_told_to_upgrade(server: RunningServer, slash: str) -> None:
    answer = get(server.ws_url.replace("ws", "http", 1) + slash)
    assert (answer.status_code, answer.json()["code"]) == (426, "UpgradeRequired")
    assert answer.headers["upgrade"] == "websocket"


def test_health_reports_every_limit(server: RunningServer) -> None:
    numbers = {
        name
        for name, field in Settings.model_fields.items()
        if field.annotation in (int, float) and name not in ("server_port", "vad_threshold", "vad_silence_duration_ms")
    }
    limits = get(f"{server.http_url}/health").json()["limits"]
    assert set(limits) == numbers
    assert {"buffer_low_s", "finish_grace_s", "ticket_ttl_s", "max_new_tokens", "streaming_chunk_size_sec"} < numbers


def errors_told(running: RunningServer) -> dict[str, float]:
    samples = [s for metric in running.services.metrics.errors.collect() for s in metric.samples]
    return {s.labels["code"]: s.value for s in samples if s.name == "asr_errors_total"}


async def test_errors_are_counted_by_the_codes_that_clients_see() -> None:
    engine = FakeEngine(partials=False)
    engine.failures.extend(EngineError("unintelligible") for _ in range(9))
    with fake_server(engine, max_sessions=1) as running:
        async with raw_client(running.ws_url) as client, raw_client(running.ws_url) as newcomer:
            await newcomer.read_until("error")
            await client.socket.send("not json")
            await client.send("no.such.event")
            await client.send("session.update", session={"sample_rate": -1})
            await client.send("input_audio_buffer.commit")
            await speak(client)
            await client.read_until("conversation.item.input_audio_transcription.failed")
        told = [frame["error"]["code"] for frame in [*client.frames, *newcomer.frames] if "error" in frame]
        assert errors_told(running) == Counter(told)
    assert {"invalid_event", "invalid_value", "Throttling", "audio_unintelligible"} < set(told)


def test_the_description_lists_the_doors(server: RunningServer) -> None:
    described = get(f"{server.http_url}/openapi.json").json()
    assert "/api-ws/v1/realtime" in described["info"]["description"]
    assert {"/", "/health", "/metrics", "/stats", "/api/tickets"} <= set(described["paths"])


async def test_numbers_after_a_session() -> None:
    with fake_server() as running:
        async with raw_client(running.ws_url) as client:
            await speak(client)
            await client.read_until("conversation.item.input_audio_transcription.completed")
            during = get(f"{running.http_url}/stats").json()
            await client.send("session.finish")
            await client.read_until("session.finished")
        wait_until(lambda: get(f"{running.http_url}/stats").json()["sessions"]["open"] == 0)
        answer = get(f"{running.http_url}/metrics")
    assert during["sessions"]["open"] == 1
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    numbers = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    ended = [float(value) for name, value in numbers.items() if name.startswith("asr_sessions_total{")]
    assert sum(ended) == 1
    assert float(numbers["asr_sessions_open"]) == 0
    assert float(numbers["asr_audio_received_seconds_total"]) == pytest.approx(2.0, abs=0.1)
    utterances = [float(value) for name, value in numbers.items() if name.startswith("asr_utterances_total{")]
    assert sum(utterances) == 1
    assert float(numbers["asr_stable_text_rewrites_total"]) == 0
    assert float(numbers["asr_vad_batch_seconds_count"]) > 0


# Who may come in


async def test_no_key_no_upgrade(guarded: RunningServer) -> None:
    status, body = await refusal(f"{guarded.ws_url}?model=m")
    assert (status, body["code"]) == (401, "InvalidApiKey")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_a_key_opens(guarded: RunningServer, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    async with raw_client(guarded.ws_url, additional_headers=headers) as client:
        await client.read_until("session.created")


async def test_a_ticket_opens_once_and_needs_a_key(guarded: RunningServer) -> None:
    refused = post(f"{guarded.http_url}/api/tickets")
    assert (refused.status_code, refused.json()["code"]) == (401, "InvalidApiKey")
    answer = post(f"{guarded.http_url}/api/tickets", headers=BEARER)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["expires_in_s"] == 45
    url = f"{guarded.ws_url}?ticket={answer.json()['ticket']}"
    origin = guarded.http_url
    async with raw_client(url, origin=origin) as client:
        await client.read_until("session.created")
    assert (await refusal(url, origin=origin))[0] == 401


async def test_an_expired_ticket_does_not_open() -> None:
    with fake_server(api_keys=KEY, ticket_ttl_s=1e-6) as running:
        ticket = post(f"{running.http_url}/api/tickets", headers=BEARER).json()["ticket"]
        assert (await refusal(f"{running.ws_url}?ticket={ticket}"))[0] == 401


async def test_without_keys_a_page_may_still_ask_for_a_ticket(server: RunningServer) -> None:
    ticket = post(f"{server.http_url}/api/tickets").json()["ticket"]
    async with raw_client(f"{server.ws_url}?ticket={ticket}") as client:
        await client.read_until("session.created")


async def test_a_foreign_page_is_refused(server: RunningServer) -> None:
    status, body = await refusal(server.ws_url, origin="https://evil.example")
    assert (status, body["code"]) == (403, "AccessDenied")
    assert post(f"{server.http_url}/api/tickets", headers={"Origin": "https://evil.example"}).status_code == 403


async def test_refusals_are_counted() -> None:
    with fake_server(api_keys=KEY) as running:
        await refusal(running.ws_url)
        await refusal(running.ws_url, origin="https://evil.example")
        numbers = get(f"{running.http_url}/metrics", headers=BEARER).text
    assert 'asr_sessions_refused_total{reason="unauthorized"} 1.0' in numbers
    assert 'asr_sessions_refused_total{reason="forbidden"} 1.0' in numbers


@pytest.mark.parametrize("allowed", ["https://app.example.com", "https://app.example.com/", "app.example.com", "*"])
async def test_a_page_that_is_allowed_comes_in(allowed: str) -> None:
    page = "https://app.example.com"
    with fake_server(allowed_origins=allowed, api_keys=KEY) as running:
        preflight = ask(
            "OPTIONS",
            f"{running.http_url}/api/tickets",
            headers={
                "Origin": page,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, x-dashscope-async, x-stainless-os",
            },
        )
        answer = post(f"{running.http_url}/api/tickets", headers={"Origin": page, **BEARER})
        async with raw_client(f"{running.ws_url}?ticket={answer.json()['ticket']}", origin=page) as client:
            await client.read_until("session.created")
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, page)
    assert answer.headers["access-control-allow-origin"] == page


def test_a_page_that_is_not_allowed_reads_nothing() -> None:
    page = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    with fake_server(allowed_origins="https://app.example.com") as running:
        answers = [ask("OPTIONS", f"{running.http_url}/api/tickets", headers=page), get(running.http_url, headers=page)]
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("path", "opened"),
    [("/", True), ("/health", True), ("/health/ready", True), ("/demo", True), ("/demo/app.js", True)]
    + [(path, False) for path in ("/docs", "/openapi.json", "/metrics", "/stats")],
)
def test_what_keys_close(guarded: RunningServer, path: str, opened: bool) -> None:
    assert get(guarded.http_url + path).status_code == (200 if opened else 401)
    assert get(guarded.http_url + path, headers=BEARER).status_code == 200


async def test_a_socket_elsewhere_is_told_where_the_door_is(server: RunningServer) -> None:
    status, body = await refusal(server.http_url.replace("http", "ws") + "/v1/realtime")
    assert status == 404
    assert "/api-ws/v1/realtime" in body["message"]


async def test_a_message_over_the_limit_closes_with_1009() -> None:
    with fake_server(max_message_bytes=4096) as running:
        async with raw_client(running.ws_url) as client:
            await client.read_until("session.created")
            await client.socket.send("x" * 5000)
            with pytest.raises(ConnectionClosed):
                await client.read_until("never")
    assert client.socket.close_code == 1009


# Start


class SlowEngine(FakeEngine):
    """Loads until the test opens the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = threading.Event()

    async def start(self) -> None:
        assert await asyncio.to_thread(self.loaded.wait, 30)
        await super().start()


def test_the_port_answers_while_the_engine_loads() -> None:
    engine = SlowEngine()
    with fake_server(engine, wait=False) as running:
        try:
            loading = get(f"{running.http_url}/health/ready")
            alive = get(f"{running.http_url}/health/live")
            info = get(running.http_url).json()
        finally:
            engine.loaded.set()
        wait_until(lambda: get(f"{running.http_url}/health/ready").status_code == 200)
    assert (loading.status_code, loading.json()["status"]) == (503, "loading")
    assert "retry-after" in loading.headers
    assert alive.status_code == 200
    assert info["status"] == "loading"


async def test_a_lazy_engine_that_cannot_be_loaded_is_not_ready() -> None:
    engine = FakeEngine(start_failure=EngineNotReady("no weights in /srv/secret"))
    with fake_server(engine, model_loading="lazy") as running:
        async with raw_client(running.ws_url) as client:
            await client.read_until("session.created")
            await asyncio.to_thread(wait_until, lambda: running.services.status == "failed")
            ready = await asyncio.to_thread(get, f"{running.http_url}/health/ready")
            alive = await asyncio.to_thread(get, f"{running.http_url}/health/live")
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    assert ready.json()["reason"]
    assert "/" not in ready.json()["reason"]
    assert alive.status_code == 200, "the next client may have more luck"


async def test_a_dead_scheduler_ends_the_sessions_and_asks_for_a_restart() -> None:
    with fake_server() as running:
        async with raw_client(running.ws_url) as client:
            await client.read_until("session.created")
            scheduler = running.services._workers.scheduler  # type: ignore[union-attr]
            scheduler._runner.get_loop().call_soon_threadsafe(scheduler._runner.cancel)  # type: ignore[union-attr]
            error = await client.read_until("error")
            await client.socket.wait_closed()
        answers = [get(f"{running.http_url}/health/{probe}") for probe in ("ready", "live")]
    assert error["error"]["code"] == "InternalError"
    assert client.socket.close_code == 1011
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(503, "failed")] * 2


async def test_an_overloaded_engine_is_told_at_the_door() -> None:
    """Partials that are all skipped reach nobody, however promptly the engine skips them."""
    with fake_server(FakeEngine(partials=False), streaming_chunk_size_sec=0.4) as running:
        async with raw_client(running.ws_url) as first, raw_client(running.ws_url) as second:
            for client in (first, second):
                await client.append(SPEECH * 3)
            await asyncio.to_thread(wait_until, lambda: running.services.status == "full")
            ready = await asyncio.to_thread(get, f"{running.http_url}/health/ready")
            async with raw_client(running.ws_url) as third:
                with pytest.raises(ConnectionClosed):
                    await third.read_until("never")
            for client in (first, second):
                await client.send("session.finish")
                await client.read_until("session.finished")
        await asyncio.to_thread(wait_until, lambda: running.services.ready)
    assert [(frame["type"], frame["error"]["code"]) for frame in third.frames] == [("error", "Throttling")]
    assert third.socket.close_code == 1013
    assert (ready.status_code, ready.json()["status"]) == (503, "full")


class EndlessEngine(FakeEngine):
    """Never finishes loading."""

    async def start(self) -> None:
        await asyncio.Event().wait()


def test_a_server_can_be_stopped_while_it_loads() -> None:
    with fake_server(EndlessEngine(), wait=False) as running:
        wait_until(lambda: get(f"{running.http_url}/health").json()["status"] == "loading")
        running.server.should_exit = True
        wait_until(lambda: not running.thread.is_alive())
    assert running.server.state.failure is None


def test_a_server_whose_engine_fails_stops_with_the_reason() -> None:
    engine = FakeEngine(start_failure=EngineNotReady("The weights are not there."))
    with fake_server(engine, wait=False) as running:
        wait_until(lambda: not running.thread.is_alive())
    assert running.server.state.failure == "The weights are not there."


def test_a_vad_that_cannot_load_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("from /secret/path")

    monkeypatch.setattr("qwen3_asr_server.runtime.services.load_vad", broken)
    with running_server(engine=FakeEngine(), wait=False) as running:
        wait_until(lambda: not running.thread.is_alive())
    assert running.server.state.failure is not None
    assert "secret" not in running.server.state.failure


# Stop


async def test_draining_gives_finals_and_admits_nobody() -> None:
    engine = FakeEngine(gate=None)
    with fake_server(engine) as running:
        async with raw_client(running.ws_url) as client:
            await client.read_until("session.created")
            await client.append(SPEECH)
            await client.read_until("input_audio_buffer.speech_started")
            running.server.should_exit = True
            final = await client.read_until("conversation.item.input_audio_transcription.completed")
            await client.read_until("session.finished")
            await client.socket.wait_closed()
        wait_until(lambda: not running.thread.is_alive())
    assert final["transcript"]
    assert client.socket.close_code == 1001


@asynccontextmanager
async def held_session(running: RunningServer) -> AsyncIterator[RawClient]:
    """Open a session that waits for a final which never comes."""
    async with raw_client(running.ws_url) as client:
        await speak(client)
        await client.read_until("input_audio_buffer.committed")
        yield client


async def test_while_draining_it_says_so_and_refuses_sessions() -> None:
    with fake_server(Gated(), shutdown_timeout_s=60) as running:
        async with held_session(running) as client:
            running.server.should_exit = True
            await asyncio.to_thread(wait_until, lambda: running.services.state == "draining")
            ready = await asyncio.to_thread(get, f"{running.http_url}/health/ready")
            async with raw_client(running.ws_url) as late:
                error = await late.read_until("error")
            running.server.handle_exit(signal.SIGINT, None)
            await client.socket.wait_closed()
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert "shutting down" in error["error"]["message"]


async def test_the_second_signal_forces_the_end() -> None:
    with fake_server(Gated(), shutdown_timeout_s=600) as running:
        async with held_session(running) as client:
            running.server.handle_exit(signal.SIGINT, None)
            await asyncio.to_thread(wait_until, lambda: running.services.state == "draining")
            running.server.handle_exit(signal.SIGINT, None)
            await asyncio.to_thread(wait_until, lambda: not running.thread.is_alive())
            await client.socket.wait_closed()


async def test_the_drain_has_a_deadline() -> None:
    with fake_server(Gated(), shutdown_timeout_s=0.3) as running:
        async with held_session(running) as client:
            running.server.should_exit = True
            error = await client.read_until("error")
            await client.socket.wait_closed()
        await asyncio.to_thread(wait_until, lambda: not running.thread.is_alive())
    assert "shutting down" in error["error"]["message"]
    assert client.socket.close_code == 1001


# As a process


@dataclass(frozen=True)
class Life:
    """What was seen of a server process from its start to the SIGTERM in the middle of somebody's sentence."""

    final: Frame
    exit_status: int
    descendants: list[int]
    log: str


@pytest.fixture(scope="module")
def life() -> Life:
    environment = {"POCKETSPHINX_DECODERS": "1", "LOG_FORMAT": "json", "API_KEYS": KEY}
    with child_server(environment) as child:
        descendants = child.children()
        assert asyncio.run(refusal(child.ws_url))[0] == 401
        assert asyncio.run(refusal(child.ws_url + "/nowhere", additional_headers=BEARER))[0] == 404
        ticket = post(f"{child.http_url}/api/tickets", headers=BEARER).json()["ticket"]
        final = asyncio.run(speak_until_the_end(child, f"{child.ws_url}?ticket={ticket}"))
        return Life(final, child.process.wait(30), descendants, child.log)


async def speak_until_the_end(child: ChildServer, url: str) -> Frame:
    async with raw_client(url) as client:
        await client.read_until("session.created")
        await client.append(clip("queue-youarenext").pcm16)
        await client.read_until("input_audio_buffer.speech_started")
        child.process.send_signal(signal.SIGTERM)
        final = await client.read_until("conversation.item.input_audio_transcription.completed")
        await client.read_until("session.finished")
        await client.socket.wait_closed()
        return final


def test_sigterm_gives_the_last_final_and_leaves_nothing_behind(life: Life) -> None:
    assert life.final["transcript"]
    assert life.exit_status == 0
    assert life.descendants, "the embedded engine decodes in a process of its own"
    assert all(ended_within(pid, 5) for pid in life.descendants)


def test_the_log_says_where_and_what_and_nothing_secret(life: Life) -> None:
    records = [json.loads(line) for line in life.log.splitlines()]
    messages = [record["message"] for record in records]
    assert any(message.startswith("WebSocket  ws://127.0.0.1:") for message in messages)
    assert any("not for production" in record["message"] for record in records if record["level"] == "warning")
    opened = next(record for record in records if record["message"] == "session opened")
    assert opened["protocol"] == "dashscope_realtime"
    assert opened["session_id"]
    assert len(opened["key_id"]) == 8
    assert not [record for record in records if record["level"] == "error"], "a refused upgrade is none"
    for secret in (KEY, "ticket=", "Traceback", life.final["transcript"]):
        assert secret not in life.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_stops_at_once_with_status_0(number: signal.Signals) -> None:
    with child_server({"MODEL_LOADING": "lazy"}) as child:
        assert child.stop(number) == 0
        assert "Traceback" not in child.log
