"""Where recordings come from, and what is left of one that does not come: addresses, paths, clients that leave."""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.doors import OPENAI, REST, SPEECH, assert_nothing_left, broken, post
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import RunningServer, child_server, running_server, wait_until
from support.web_server import ok, web_server

DOORS = (REST, OPENAI)
MULTIPART = "multipart/form-data; boundary=cut"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    settings = {"recording_folders": str(folder), "fetch_trusted_networks": "127.0.0.2"}
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


# Where recordings come from


async def ask_for(server: RunningServer, url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return await http.post(server.http_url + REST, json={"url": url, "language": "en", "return_timestamps": True})


@pytest.fixture
async def web() -> AsyncIterator[Any]:
    async with web_server() as serving:
        serving.answers["/speech.wav"] = ok(SPEECH)
        yield serving


async def test_a_data_url(server: RunningServer) -> None:
    answer = await ask_for(server, f"data:audio/wav;base64,{base64.b64encode(SPEECH).decode()}")
    assert answer.json()["text"] == post(server, REST).json()["text"]


async def test_a_path_on_the_server(server: RunningServer, folder: Path) -> None:
    (folder / "speech.wav").write_bytes(SPEECH)
    for url in (f"{folder}/speech.wav", f"file://{folder}/speech.wav"):
        assert (await ask_for(server, url)).json()["text"]


async def test_an_address_in_a_network_that_is_trusted() -> None:
    settings = {"fetch_trusted_networks": "127.0.0.1"}
    async with web_server() as web:
        web.answers["/speech.wav"] = ok(SPEECH)
        with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
            assert (await ask_for(running, web.url("/speech.wav"))).json()["text"]
            missing = await ask_for(running, web.url("/missing"))
            assert (missing.status_code, missing.json()["code"]) == (400, "SourceUnreachable")
            assert_nothing_left(running)


async def test_a_refused_address_is_not_asked(server: RunningServer, web: Any) -> None:
    answer = await ask_for(server, f"http://127.0.0.1:{web.port}/speech.wav")
    assert (answer.status_code, broken(answer, REST)["code"]) == (400, "SourceRefused")
    assert not web.requests


def test_openai_takes_no_address(server: RunningServer) -> None:
    answer = httpx.post(server.http_url + OPENAI, json={"url": "data:audio/wav;base64,AAAA"}, trust_env=False)
    assert (answer.status_code, broken(answer, OPENAI)["param"]) == (400, "file")


# Clients that leave


@pytest.mark.parametrize("door", DOORS)
def test_an_upload_that_stops(server: RunningServer, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = server.server.state
    monkeypatch.setattr(state, "source_limits", replace(state.source_limits, upload_stall_s=0.1))
    request = httpx.Request("POST", server.http_url + door, files={"file": SPEECH})
    with _connected(server) as client:
        _send(client, request, request.read()[:60_000])
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert_nothing_left(server)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_ends_the_work(door: str, stream: str) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    with running_server(engine=engine, vad=EnergyVad()) as running:
        request = httpx.Request("POST", running.http_url + door, files={"file": SPEECH}, data={"stream": stream})
        with _connected(running) as client:
            _send(client, request, request.read())
            wait_until(lambda: bool(engine.steps))
            assert len(running.services.recordings) == 1
        assert_nothing_left(running)
        wait_until(lambda: engine.open_streams == 0)


@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_leaves_while_it_sends(server: RunningServer, door: str) -> None:
    request = httpx.Request("POST", server.http_url + door, files={"file": SPEECH})
    with _connected(server) as client:
        _send(client, request, request.read()[:60_000])
        wait_until(lambda: server.server.state.uploads.in_use == 1)
    assert_nothing_left(server)


def _connected(server: RunningServer) -> socket.socket:
    host, _, port = server.http_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


def _send(client: socket.socket, request: httpx.Request, body: bytes) -> None:
    lines = [f"POST {request.url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    client.sendall("\r\n".join([*lines, "", ""]).encode() + body)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_is_announced_too_large_is_not_awaited(server: RunningServer, door: str) -> None:
    headers = {"Content-Length": str(3 * 2**30), "Content-Type": MULTIPART}
    with _connected(server) as client:
        _send(client, httpx.Request("POST", server.http_url + door, headers=headers), b"--cut\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert_nothing_left(server)


def test_a_large_upload_is_not_in_memory() -> None:
    """300 MB of nothing: stored on the way, then refused."""

    def body() -> Iterator[bytes]:
        yield b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(300):
            yield bytes(1_000_000)
        yield b"\r\n--cut--\r\n"

    with child_server({"ENGINE": "pocketsphinx"}) as child:
        status = Path(f"/proc/{child.process.pid}/status")
        (before,) = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        headers = {"Content-Type": MULTIPART}
        answer = httpx.post(child.http_url + REST, content=body(), headers=headers, trust_env=False, timeout=60)
        (after,) = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFile")
    assert after - before < 50_000
