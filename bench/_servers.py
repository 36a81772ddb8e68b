"""The three servers that `streaming.py` compares, each a process group of its own on loopback.

All run the tiny checkpoint in fp32 with vLLM on the processor. Knows how to start, await and end them, and nothing of
their protocols.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _http import wait_ready
from _tiny_speech import CHECKPOINT

START_S = 300
STOP_S = 30
_HERE = Path(__file__).resolve().parent
_VLLM = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    ready_path: str

    def wait_ready(self) -> None:
        """Wait until it takes new sessions: after its start, or after a run that was too much for it."""
        url = f"http://127.0.0.1:{self.port}{self.ready_path}"
        wait_ready(url, START_S, lambda: self.process.poll() is None)


@contextmanager
def our_server(log: Path) -> Iterator[Server]:
    """Run this server with the engine vllm."""
    settings = {"ENGINE": "vllm", "QWEN3_ASR_MODEL_PATH": str(CHECKPOINT), "MODEL_DTYPE": "float"}
    with _ours([sys.executable, "-m", "qwen3_asr_server", "serve"], settings, log) as server:
        yield server


@contextmanager
def locked_server(log: Path) -> Iterator[Server]:
    """Run this server with an engine that decodes one step at a time (`_locked.py`)."""
    with _ours([sys.executable, str(_HERE / "_locked.py")], {}, log) as server:
        yield server


@contextmanager
def realtime_server(log: Path) -> Iterator[Server]:
    """Run vLLM's own server with its realtime endpoint."""
    with tempfile.TemporaryDirectory() as folder:
        # vLLM's server wants a distribution of that name and takes from its version that this is the CPU build.
        metadata = Path(folder) / "vllm-0.32.0+cpu.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", encoding="utf-8")
        port = _free_port()
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(CHECKPOINT)]
        command += ["--hf-overrides", '{"architectures":["Qwen3ASRRealtimeGeneration"]}', "--served-model-name", "tiny"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "5120", "--max-num-seqs", "128", "--block-size", "32"]
        with _running(command, {"PYTHONPATH": folder}, port, "/health", log) as server:
            yield server


@contextmanager
def _ours(command: list[str], settings: dict[str, str], log: Path) -> Iterator[Server]:
    port = _free_port()
    environment = {
        "PYTHONPATH": str(_HERE.parent / "src"),
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(port),
        "MAX_SESSIONS": "4096",
        "LOG_LEVEL": "warning",
    }
    with _running(command, environment | settings, port, "/health/ready", log) as server:
        yield server


@contextmanager
def _running(command: list[str], settings: dict[str, str], port: int, path: str, log: Path) -> Iterator[Server]:
    environment = {**os.environ, **_VLLM, **settings}
    with log.open("ab") as output, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
        try:
            server = Server(port, process, path)
            server.wait_ready()
            yield server
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
