"""The command `download` with the hub's real library, against a hub on this machine. Starts no engine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.process import SOURCE
from support.tiny_speech import CHECKPOINT

MODEL = "tiny/qwen3-asr"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.is_file()}


class Hub(BaseHTTPRequestHandler):
    """As much of Hugging Face as a download of one model needs."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(None)

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self, body: bytes | None) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith(f"/api/models/{MODEL}/revision/") or path == f"/api/models/{MODEL}":
            listing = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._send(json.dumps(listing).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(data), "oid": _oid(data)} for n, data in FILES.items()]
            self._send(json.dumps(tree).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(f"/{MODEL}/resolve/") and name in FILES:
            self._send(FILES[name], body, {"ETag": f'"{_oid(FILES[name])}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, body: bytes | None, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if body is None else body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def download(model: str, endpoint: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "PYTHONPATH": str(SOURCE),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "qwen3_asr_server", "download", model]
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_weights_are_fetched_once_with_progress(hub: str, tmp_path: Path) -> None:
    first = download(MODEL, hub, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "100%" in first.stderr
    assert "Traceback" not in first.stderr
    said, _, folder = first.stdout.strip().splitlines()[-1].partition(" is in ")
    assert said == MODEL
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == FILES
    again = download(MODEL, hub, tmp_path)
    assert again.stdout == first.stdout


def test_a_model_that_is_not_there(hub: str, tmp_path: Path) -> None:
    failed = download("tiny/none", hub, tmp_path)
    assert failed.returncode == 1
    assert "Hugging Face has no such model" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    failed = download(MODEL, "http://127.0.0.1:9", tmp_path)
    assert failed.returncode == 1
    assert "Hugging Face cannot be reached" in failed.stderr
