"""One real server for all tests here, and only those tests that the installed SDK has something for."""

import asyncio
import threading
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import dashscope
import pytest
from dashscope.audio.asr import Recognition
from dashscope.audio.qwen_omni import omni_realtime

from support.process import ServerProcess, running_server
from support.recorded_sdk import RecordingServer, served, wav

API_KEY = "sk-0123456789"

WITHOUT = {
    "test_recognition_context.py": not hasattr(Recognition, "update_context"),
    "test_v1_audio_config.py": not hasattr(omni_realtime, "AudioFormatConfig"),
    "test_v2.py": find_spec("dashscope.v2") is None,
    "test_v2_http.py": find_spec("dashscope.v2") is None,
    "test_v2_recognition.py": find_spec("dashscope.v2") is None,
    "test_v2_http_async.py": find_spec("dashscope.v2") is None,
}
collect_ignore = [name for name, missing in WITHOUT.items() if missing]
assert not collect_ignore or version("dashscope") != "2.0.2", "the SDK of the development environment has all of it"


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server without keys that pings every second."""
    with running_server(PING_INTERVAL_S="1") as running:
        yield running


@pytest.fixture(scope="session")
def guarded_server() -> Iterator[ServerProcess]:
    """A server that knows one key."""
    with running_server(API_KEYS=API_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingServer]:
    """A server for recordings over HTTP."""
    data = tmp_path_factory.mktemp("state") / "data"
    settings = {
        "API_KEYS": API_KEY,
        "DATA_DIR": str(data),
        "FETCH_TRUSTED_NETWORKS": "127.0.0.1",
        "SYNC_MAX_BYTES": "1500000",
        "SYNC_MAX_S": "25",
    }
    with running_server(**settings) as running:
        yield RecordingServer(running.base_url, API_KEY, data)


@pytest.fixture
def pointed(recordings: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the SDK's first generation at the server for recordings."""
    monkeypatch.setattr(dashscope, "base_http_api_url", recordings.base_url)
    monkeypatch.setattr(dashscope, "api_key", recordings.key)


@pytest.fixture(scope="module")
def pointed_at_tasks(server: ServerProcess) -> Iterator[None]:
    """Point `Recognition` of the SDK's first generation at the server; close the event loops that it leaves open."""
    policy = asyncio.get_event_loop_policy()
    opened: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        opened.append(made())
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        made = policy.new_event_loop
        patch.setattr(policy, "new_event_loop", new_event_loop)
        patch.setattr(dashscope, "base_websocket_api_url", server.inference_url)
        patch.setattr(dashscope, "api_key", "sk-test")
        yield
    for thread in threading.enumerate():
        if thread.name == "iter_async_thread":  # the SDK's, about to close its loop if its version does so
            thread.join(10)
    for loop in opened:
        loop.close()


@pytest.fixture(scope="module")
def second_generation(recordings: RecordingServer) -> dict[str, Any]:
    """Return what a client of the SDK's second generation needs for that server."""
    return {"api_key": recordings.key, "base_url": recordings.base_url, "timeout": 60, "max_retries": 0}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a recording, `speech.wav`, on the web."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "speech.wav").write_bytes(wav())
    with served(folder) as address:
        yield address
