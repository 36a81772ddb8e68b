"""The real application on a real port: in a thread of this process, or as a child whose end is watched.

For tests of the server's own life. `support.process` is for those that only need a server to talk to.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from qwen3_asr_server.config import Settings
from qwen3_asr_server.frontends._app import create_server
from qwen3_asr_server.frontends._server import Server
from qwen3_asr_server.runtime.services import Services

READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
REALTIME = "/api-ws/v1/realtime"


@dataclass(frozen=True)
class RunningServer:
    """A server in a thread of this process."""

    http_url: str
    ws_url: str
    """The realtime door, without a query."""
    services: Services
    server: Server
    thread: threading.Thread


@dataclass(frozen=True)
class ChildServer:
    """A server in a process of its own."""

    http_url: str
    ws_url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self.log_path.read_text("utf-8")

    def children(self) -> list[int]:
        """Return the pids of all its descendants."""
        return list(_descendants(self.process.pid))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_DEADLINE_S)


def make_settings(**overrides: Any) -> Settings:
    """Return settings for a test: loopback, any free port, no `.env` of the machine."""
    return Settings(**{"_env_file": None, "server_host": "127.0.0.1", "server_port": 0, **overrides})


@contextmanager
def running_server(
    overrides: Mapping[str, Any] | None = None, *, engine: Any = None, vad: Any = None, wait: bool = True
) -> Iterator[RunningServer]:
    """Serve from a thread while the `with` block runs.

    Args:
        overrides: settings by their field names.
        engine: instead of the one that the settings name.
        vad: instead of Silero.
        wait: begin when the server is ready; else as soon as it answers.
    """
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        settings = make_settings(**{"data_dir": f"{folder}/data", **(overrides or {})})
        services = Services(settings, engine=engine, vad=vad)
        server = create_server(settings, services)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=f"server {address}")
        thread.start()
        try:
            wait_until(lambda: server.started and (not wait or is_ready(server)), READY_DEADLINE_S)
            yield RunningServer(f"http://{address}", f"ws://{address}{REALTIME}", services, server, thread)
        finally:
            server.should_exit = True
            thread.join(STOP_DEADLINE_S)
            assert not thread.is_alive(), "the server does not stop"


def is_ready(server: Server) -> bool:
    """Say whether sessions are served; fail when that can no longer happen."""
    assert server.state.failure is None, server.state.failure
    return server.state.services.ready


@contextmanager
def child_server(
    environment: Mapping[str, str] | None = None, *arguments: str, wait: bool = True
) -> Iterator[ChildServer]:
    """Run `python -m qwen3_asr_server` while the `with` block runs; kill what is left of it afterwards."""
    with TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        env = {
            **os.environ,
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": "0",
            "PYTHONUNBUFFERED": "1",
            "DATA_DIR": f"{folder}/data",
            **(environment or {}),
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "qwen3_asr_server", *arguments], cwd=folder, env=env, stdout=log, stderr=log
            )
        try:
            address = _address_in(log_path, process)
            server = ChildServer(f"http://{address}", f"ws://{address}{REALTIME}", process, log_path)
            if wait:
                wait_until(lambda: answers_ready(server.http_url), READY_DEADLINE_S)
            yield server
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(STOP_DEADLINE_S)


def answers_ready(http_url: str) -> bool:
    """Ask the server over HTTP whether it is ready."""
    try:
        return httpx.get(f"{http_url}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Return as soon as `condition` holds; fail when the deadline passes first."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s} s in vain"
        pause.wait(0.01)


def _address_in(log_path: Path, process: subprocess.Popen[bytes]) -> str:
    found: list[str] = []

    def look() -> bool:
        text = log_path.read_text("utf-8")
        found.extend(re.findall(r"http://([\w.\[\]:]+:\d+)", text)[:1])
        assert found or process.poll() is None, text
        return bool(found)

    wait_until(look, READY_DEADLINE_S)
    return found[0]


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text("utf-8").split()):
            yield child
            yield from _descendants(child)
