"""A real server in a process of its own, for tests that come from outside.

Needs the standard library only: `make test-sdk` runs it in environments that do not hold the server.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60
STOP_S = 30
SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where `OmniRealtimeConversation(url=…)` is to be pointed."""
        return f"ws://127.0.0.1:{self.port}/api-ws/v1/realtime"

    @property
    def inference_url(self) -> str:
        """What `dashscope.base_websocket_api_url` is to be set to."""
        return f"ws://127.0.0.1:{self.port}/api-ws/v1/inference"

    @property
    def base_url(self) -> str:
        """What `dashscope.base_http_api_url` is to be set to."""
        return f"http://127.0.0.1:{self.port}/api/v1"

    def get(self, path: str) -> Any:
        """Fetch a JSON document."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """Fetch a text."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
            return str(response.read().decode())


@contextmanager
def running_server(**settings: str) -> Iterator[ServerProcess]:
    """Start a server with the embedded engine and yield it once it is ready.

    The interpreter is that of `QWEN3_ASR_TEST_PYTHON`, else this one.

    Args:
        settings: environment variables on top, for example `API_KEYS`.
    """
    python = os.environ.get("QWEN3_ASR_TEST_PYTHON", sys.executable)
    port = _free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(port),
        "ENGINE": "pocketsphinx",
        "POCKETSPHINX_DECODERS": "2",
        "DECODE_TIMEOUT_S": "30",  # these tests are not about speed, and other work may share the machine
        **settings,
    }
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [python, "-m", "qwen3_asr_server", "serve"],
            stdout=log,
            stderr=log,
            env={"DATA_DIR": f"{folder}/data", **environment},
            cwd=folder,
        )
        try:
            _wait_until_ready(process, port)
            yield ServerProcess(port, process)
            assert process.poll() is None, "the server died during the tests"
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr)  # noqa: T201 - pytest shows it with the failure
            raise
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    raise RuntimeError(f"the server was not ready within {START_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
