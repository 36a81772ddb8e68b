"""The command `transcribe --url`: a server elsewhere writes what an engine here would write, and says what is wrong."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_asr_server.commands import _there
from qwen3_asr_server.commands._address import Address, address_of
from qwen3_asr_server.commands._here import Here
from qwen3_asr_server.commands._jobs import Wishes
from qwen3_asr_server.commands._there import There
from qwen3_asr_server.commands._transcriber import Unserved
from qwen3_asr_server.commands.transcribe import transcribe_files
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.services import Services
from support.doors import RATE, SPEECH, wav_of
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import RunningServer, make_settings, running_server
from support.web_server import ok

KEY = "sk-right"
FORMS = ("text", "json", "srt", "vtt", "verbose_json")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(
        {"api_keys": KEY, "max_upload_bytes": 300_000}, engine=FakeEngine(), vad=EnergyVad()
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    Path("talk.wav").write_bytes(SPEECH)


def there(url: str, *files: str, key: str = KEY, **wishes: Any) -> int:
    return transcribe_files(There(address_of(url), key), Wishes([Path(file) for file in files], **wishes))


def call() -> bytes:
    """Return a recording with a party on each channel."""
    samples = np.zeros((3 * RATE, 2), np.float32)
    samples[RATE // 2 : RATE, 0] = samples[2 * RATE : 5 * RATE // 2, 1] = 0.25
    return wav_of(samples)


# What it writes


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_server_writes_what_an_engine_here_would(
    server: RunningServer, capsys: Any, form: Any, words: bool, channels: bool
) -> None:
    Path("call.wav").write_bytes(call())
    wishes = Wishes([Path("call.wav")], form=form, words=words, channels=channels, stdout=True, quiet=True)
    services = Services(make_settings(), engine=FakeEngine(), vad=EnergyVad())
    assert transcribe_files(Here(services, MediaLimits()), wishes) == 0
    expected = capsys.readouterr().out
    assert transcribe_files(There(address_of(server.ws_url), KEY), wishes) == 0
    assert capsys.readouterr().out == expected != ""


@pytest.mark.parametrize("form", FORMS)
def test_a_server_tells_of_a_file_that_breaks_off_as_an_engine_here_would(
    server: RunningServer, capsys: Any, form: Any
) -> None:
    Path("talk.wav").write_bytes(SPEECH[: len(SPEECH) // 2])
    wishes = Wishes([Path("talk.wav")], form=form, stdout=True)
    services = Services(make_settings(), engine=FakeEngine(), vad=EnergyVad())
    assert transcribe_files(Here(services, MediaLimits()), wishes) == 0
    expected = capsys.readouterr()
    assert "talk.wav: The file breaks off" in expected.err
    assert transcribe_files(There(address_of(server.ws_url), KEY), wishes) == 0
    assert capsys.readouterr() == expected


def test_files_come_out_in_their_order_and_beside_the_recordings(server: RunningServer, capsys: Any) -> None:
    Path("loud.wav").write_bytes(call())
    files = ["talk.wav", "loud.wav"] * 3
    assert there(server.http_url, *files, stdout=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == lines[:2] * 3
    assert there(server.http_url, "talk.wav", "loud.wav") == 0
    assert [Path(name).read_text().strip() for name in ("talk.txt", "loud.txt")] == lines[:2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://host:8001/api-ws/v1/realtime", Address("http://host:8001")),
        ("ws://host:8001/api-ws/v1/realtime/", Address("http://host:8001")),
        ("wss://host/asr/api-ws/v1/realtime?model=qwen3-asr-0.6b", Address("https://host/asr", "qwen3-asr-0.6b")),
        ("http://host:8001", Address("http://host:8001")),
        ("https://host/asr/", Address("https://host/asr")),
        ("http://[::1]:8001/api/transcribe", Address("http://[::1]:8001")),
        ("http://host:8001/api/v1", Address("http://host:8001")),
        ("http://host:8001/v1/", Address("http://host:8001")),
        ("http://host:8001/v1/audio/transcriptions", Address("http://host:8001")),
        ("http://host/asr/compatible-mode/v1", Address("http://host/asr")),
        ("http://host:8001/compatible-mode/v1/chat/completions", Address("http://host:8001")),
        ("http://host:8001/demo", Address("http://host:8001")),
    ],
)
def test_any_door_says_where_the_server_is(url: str, expected: Address) -> None:
    assert address_of(url) == expected


@pytest.mark.parametrize("url", ["host:8001", "ftp://host", "ws://", "http://host:port", "http://sk-key@host", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        address_of(url)


@pytest.mark.parametrize(
    ("query", "wishes", "status"),
    [
        ("?model=qwen3-asr-flash-realtime", {}, 0),
        ("?model=NONE", {}, 0),
        ("", {"model": "none"}, 0),
        ("", {"model": "whisper-9"}, 1),
    ],
)
def test_models(server: RunningServer, capsys: Any, query: str, wishes: dict[str, str], status: int) -> None:
    """As at the realtime door, a model that is not there means the default; one that is asked for must be there."""
    assert there(server.ws_url + query, "talk.wav", **wishes) == status
    assert ("There is no such model here" in capsys.readouterr().err) == bool(status)


# What is wrong


@pytest.mark.parametrize(
    ("files", "wishes", "status", "told"),
    [
        (["gone.wav"], {}, 1, "gone.wav: No such file or directory."),
        (["notes.wav"], {}, 1, "notes.wav: The file is of an unknown format, or its beginning or end is missing."),
        (["empty.wav"], {}, 1, "empty.wav: The file is empty."),
        (["pipe.wav"], {}, 1, "pipe.wav: This is no file."),
        (["large.wav"], {}, 1, "large.wav: The file is larger than 300000 bytes."),
        (["talk.wav"], {"language": "de"}, 2, "The engine fake does not know the language de; it knows en, zh."),
        (["talk.wav"], {"context": "Wu"}, 0, "warning: --context has no effect: the engine fake takes none."),
    ],
)
def test_what_is_told(
    server: RunningServer, capsys: Any, files: list[str], wishes: dict[str, str], status: int, told: str
) -> None:
    Path("notes.wav").write_text("no audio in here, only words")
    Path("empty.wav").touch()
    os.mkfifo("pipe.wav")
    Path("large.wav").write_bytes(bytes(3_000_000))
    before = set(Path().iterdir())
    assert there(server.ws_url, *files, **wishes) == status
    assert capsys.readouterr().err == f"qwen3-asr-server: {told}\n"
    assert len(set(Path().iterdir()) - before) == (status == 0)


def test_a_file_that_fails_keeps_nobody_from_their_turn(server: RunningServer) -> None:
    Path("notes.wav").write_text("no audio in here, only words")
    assert there(server.ws_url, "notes.wav", "talk.wav") == 1
    assert Path("talk.txt").read_text().strip()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("", "wants an API key: --api-key, or DASHSCOPE_API_KEY."),
        ("sk-wrong", "takes another key than this one: --api-key, or DASHSCOPE_API_KEY."),
        ("schlüssel", "An API key has only"),
        ("a\nb", "An API key has only"),
    ],
)
def test_keys(server: RunningServer, key: str, told: str) -> None:
    with pytest.raises(Unserved) as caught:
        there(server.ws_url, "talk.wav", key=key)
    assert told in caught.value.message


def test_nobody_there() -> None:
    with pytest.raises(Unserved, match=r"http://127\.0\.0\.2:1 cannot be reached: .+\."):
        there("ws://127.0.0.2:1/api-ws/v1/realtime", "talk.wav")


# Servers that behave badly

STATUS = ok(
    json.dumps(
        {
            "engine": {"name": "stub", "languages": ["en"], "context": True, "word_times": False},
            "available_models": ["stub"],
        }
    ).encode()
)
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n%s"
FULL = json.dumps({"code": "Throttling", "message": "The server is full.", "request_id": ""}).encode()
RESULT = ok(
    b'event: progress\ndata: {"done_seconds": 1.0, "total_seconds": null}\n\n'
    b'event: result\ndata: {"content": "hi\\n"}\n\n'
)
BREAKS_OFF = ok(b'event: progress\ndata: {"done_seconds": 1.0, "total_seconds": 2.0}\n\n')
FAILS = ok(b'event: error\ndata: {"code": "ModelUnavailable", "message": "It has died.", "request_id": ""}\n\n')


class Stub(BaseHTTPRequestHandler):
    """Answers each path with bytes, one after the other, the last ones for ever."""

    answers: dict[str, list[bytes]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        left = self.answers[self.path]
        self.wfile.write(left.pop(0) if len(left) > 1 else left[0])
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def stub(status: bytes, *answers: bytes) -> Iterator[str]:
    """Run a server that is not ours; yield its address."""
    handler = type("Handler", (Stub,), {"answers": {"/api/status": [status], "/api/transcribe": list(answers)}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (BREAKS_OFF, "talk.wav: The server broke off."),
        (FAILS, "talk.wav: It has died."),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\noh!", "talk.wav: {base} answered 502."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nevent", "talk.wav: The connection to {base} broke off."),
        (BUSY % (len(FULL), FULL), "talk.wav: The server is full."),
        (ok(b"event: result\ndata: {\n\n"), "talk.wav: {base} answered what nobody can read."),
        (ok(b"event: progress\ndata: {}\n\n"), "talk.wav: {base} answered what nobody can read."),
    ],
)
def test_servers_that_fail(monkeypatch: pytest.MonkeyPatch, capsys: Any, answer: bytes, told: str) -> None:
    monkeypatch.setattr(_there, "PATIENCE_S", -1)
    with stub(STATUS, answer) as base:
        assert there(base, "talk.wav", quiet=True) == 1
    assert capsys.readouterr().err == f"qwen3-asr-server: {told.format(base=base)}\n"


@pytest.mark.parametrize(
    "answer", [ok(b"<html>"), ok(b"{}"), ok(b"[]"), b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]
)
def test_something_else_there(answer: bytes) -> None:
    with stub(answer) as base, pytest.raises(Unserved, match="is no such server: /api/status gave"):
        there(base, "talk.wav")


def test_a_disk_that_fails(monkeypatch: pytest.MonkeyPatch, server: RunningServer, capsys: Any) -> None:
    def read(file: object, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_there._Sent, "read", read)
    assert there(server.ws_url, "talk.wav", quiet=True) == 1
    assert capsys.readouterr().err == "qwen3-asr-server: talk.wav: The file cannot be read: Input/output error.\n"


def test_a_full_server_is_asked_again() -> None:
    busy = BUSY % (len(FULL), FULL)
    with stub(STATUS, busy, busy, RESULT) as base:
        assert there(base, "talk.wav", words=True, form="srt", quiet=True) == 0
    assert Path("talk.srt").read_text() == "hi\n"
