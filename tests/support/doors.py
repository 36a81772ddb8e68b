"""The HTTP doors for recordings as their clients see them: what is sent, what comes back, what is left behind.

`DOORS` is a table: a new door is a row that says how to ask it, and how it says what is wrong. The engine names the
loudness of what it hears; `wav` makes something to hear.
"""

import base64
import io
import json
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from support.children import media_workers
from support.server import RunningServer, wait_until
from support.speech import pcm16

REST = "/api/transcribe"
OPENAI = "/v1/audio/transcriptions"
CHAT = "/v1/chat/completions"
COMPATIBLE = "/compatible-mode/v1/chat/completions"
DASHSCOPE = "/api/v1/services/aigc/multimodal-generation/generation"
DASHSCOPE_EVENTS = f"{DASHSCOPE} with events"
RATE = 16_000


def wav(*parts: tuple[float, float]) -> bytes:
    """Return a WAV file of stretches, each with its loudness and its length in seconds."""
    samples = np.concatenate([np.full(round(seconds * RATE), loudness, np.float32) for loudness, seconds in parts])
    return wav_of(samples[:, None])


def wav_of(samples: Any) -> bytes:
    """Return a WAV file of float32 [n, channels]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(pcm16(samples.ravel()))
    return file.getvalue()


SPEECH = wav((0.0, 0.5), (0.25, 0.64), (0.0, 1.5), (0.5, 0.64), (0.0, 0.5))
SEGMENTS = 2
SILENCE = wav((0.0, 2.0))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a door, in nobody's form."""

    file: bytes | None = SPEECH
    url: str | None = None
    """Instead of the file."""
    language: str | None = None
    model: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What a door says went wrong."""

    status: int
    code: str | None


@dataclass(frozen=True, slots=True)
class Door:
    """A way to a transcript over HTTP."""

    ask: Callable[[str, Asked], httpx.Response]
    """Takes the server's address."""
    text: Callable[[httpx.Response], str]
    body: Callable[[httpx.Response], dict[str, Any]]
    """Returns the object that says of a file that it broke off, in an answer or its last event."""
    error: Callable[[httpx.Response], dict[str, Any]]
    """Returns the error in an answer, after a look at its form."""
    failures: Mapping[str, Failure]
    """By what is wrong; what is not in it cannot go wrong at this door."""


def _form(path: str) -> Callable[[str, Asked], httpx.Response]:
    def ask(server: str, asked: Asked) -> httpx.Response:
        fields = {"url": asked.url, "language": asked.language, "model": asked.model}
        files = {"file": ("speech.wav", asked.file)} if asked.file is not None and asked.url is None else None
        given = {name: value for name, value in fields.items() if value is not None}
        headers = {"Authorization": f"Bearer {asked.key}"} if asked.key else {}
        address = f"{server}{path}"
        return httpx.post(address, files=files, data=given, headers=headers, trust_env=False, timeout=20)

    return ask


def chat(part: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request with one part of a message."""
    return {"messages": [{"role": "user", "content": [part]}], **fields}


def data_url(file: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(file).decode()}"


def audio_url(url: str) -> dict[str, Any]:
    """Return a part of a chat message."""
    return {"type": "audio_url", "audio_url": {"url": url}}


def _as_input_audio(url: str) -> dict[str, Any]:
    """Return a part that only holds URLs and base64: no path."""
    return {"type": "input_audio", "input_audio": {"data": f"file://{url}" if url.startswith("/") else url}}


def _chat(path: str, part: Callable[[str], dict[str, Any]]) -> Callable[[str, Asked], httpx.Response]:
    def ask(server: str, asked: Asked) -> httpx.Response:
        url = asked.url or (None if asked.file is None else data_url(asked.file))
        body = chat({"type": "text", "text": ""} if url is None else part(url))
        body |= {"asr_options": {"language": asked.language}} if asked.language else {}
        body |= {"model": asked.model} if asked.model else {}
        headers = {"Authorization": f"Bearer {asked.key}"} if asked.key else {}
        return httpx.post(f"{server}{path}", json=body, headers=headers, trust_env=False, timeout=60)

    return ask


def _content(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"]).rpartition("<asr_text>")[2]


def _body(answer: httpx.Response) -> dict[str, Any]:
    return dict(answer.json())


def _plain_error(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()
    assert set(error) == {"code", "message", "request_id"}
    return dict(error)


def _openai_error(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


_CHAT_FAILURES: Mapping[str, Failure] = {
    "no file": Failure(400, "invalid_value"),
    "unreadable": Failure(400, "invalid_file"),
    "oversized": Failure(413, "file_too_large"),
    "wrong language": Failure(400, "invalid_value"),
    "wrong model": Failure(404, "model_not_found"),
    "unreachable": Failure(400, None),
    "refused": Failure(400, None),
    "no address": Failure(400, "invalid_value"),
    "no key": Failure(401, "invalid_api_key"),
    "full": Failure(503, "server_overloaded"),
    "no model loaded": Failure(503, "server_overloaded"),
}


def dashscope_call(
    server: str,
    messages: list[dict[str, Any]],
    *,
    model: str | None = "qwen3-asr-flash",
    key: str | None = None,
    events: bool = False,
    **parameters: Any,
) -> httpx.Response:
    """Ask DashScope's synchronous door as its SDKs do."""
    headers = {"X-DashScope-SSE": "enable"} if events else {}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "input": {"messages": messages}, "parameters": parameters}
    return httpx.post(f"{server}{DASHSCOPE}", json=body, headers=headers, trust_env=False, timeout=20)


def user(audio: str) -> dict[str, Any]:
    """Return the message that names a recording."""
    return {"role": "user", "content": [{"audio": audio}]}


def _dashscope(*, events: bool) -> Callable[[str, Asked], httpx.Response]:
    def ask(server: str, asked: Asked) -> httpx.Response:
        url = asked.url or (None if asked.file is None else data_url(asked.file))
        options = {} if asked.language is None else {"language": asked.language}
        return dashscope_call(
            server,
            [user(url)] if url else [],
            model=asked.model or "qwen3-asr-flash",
            key=asked.key,
            events=events,
            asr_options=options,
        )

    return ask


def dashscope_frames(answer: httpx.Response) -> list[tuple[list[str], Any]]:
    """Return the lines of every event as DashScope writes them, and its data."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    blocks = [block.split("\n") for block in answer.text.removesuffix("\n\n").split("\n\n")]
    assert all(lines[-1].startswith("data:") for lines in blocks)
    return [(lines[:-1], json.loads(lines[-1].removeprefix("data:"))) for lines in blocks]


def _dashscope_output(answer: httpx.Response) -> dict[str, Any]:
    is_json = answer.headers["content-type"] == "application/json"
    body = answer.json() if is_json else dashscope_frames(answer)[-1][1]
    return dict(body["output"])


def _dashscope_text(answer: httpx.Response) -> str:
    return str(_dashscope_output(answer)["choices"][0]["message"]["content"][0]["text"])


def _dashscope_error(answer: httpx.Response) -> dict[str, Any]:
    if answer.headers["content-type"] == "application/json":
        return _plain_error(answer)
    ((lines, error),) = dashscope_frames(answer)
    assert lines == ["id:1", "event:error", f":HTTP_STATUS/{answer.status_code}", f"status:{answer.status_code}"]
    assert set(error) == {"code", "message", "request_id"}
    return dict(error)


_DASHSCOPE_FAILURES = {
    "no file": Failure(400, "InvalidParameter"),
    "unreadable": Failure(400, "InvalidParameter.DataInspection"),
    "oversized": Failure(413, "BadRequest.TooLarge"),
    "wrong language": Failure(400, "InvalidParameter"),
    "wrong model": Failure(404, "Model.NotExist"),
    "unreachable": Failure(400, "InvalidParameter.DataInspection"),
    "refused": Failure(400, "InvalidURL"),
    "no address": Failure(400, "InvalidParameter"),
    "no key": Failure(401, "InvalidApiKey"),
    "full": Failure(503, "Throttling"),
    "no model loaded": Failure(503, "ModelUnavailable"),
}

DOORS: Mapping[str, Door] = {
    CHAT: Door(_chat(CHAT, audio_url), _content, _body, _openai_error, _CHAT_FAILURES),
    COMPATIBLE: Door(_chat(COMPATIBLE, _as_input_audio), _content, _body, _openai_error, _CHAT_FAILURES),
    REST: Door(
        _form(REST),
        lambda answer: str(answer.json()["text"]),
        _body,
        _plain_error,
        {
            "no file": Failure(400, "InvalidParameter"),
            "unreadable": Failure(400, "InvalidFile"),
            "oversized": Failure(413, "PayloadTooLarge"),
            "wrong language": Failure(400, "InvalidParameter"),
            "wrong model": Failure(404, "Model.NotExist"),
            "unreachable": Failure(400, "SourceUnreachable"),
            "refused": Failure(400, "SourceRefused"),
            "no address": Failure(400, "InvalidParameter"),
            "no key": Failure(401, "InvalidApiKey"),
            "full": Failure(503, "Throttling"),
            "no model loaded": Failure(503, "ModelUnavailable"),
        },
    ),
    OPENAI: Door(
        _form(OPENAI),
        lambda answer: str(answer.json()["text"]),
        _body,
        _openai_error,
        {
            "no file": Failure(400, "invalid_value"),
            "unreadable": Failure(400, "invalid_file"),
            "oversized": Failure(413, "file_too_large"),
            "wrong language": Failure(400, "invalid_value"),
            "wrong model": Failure(404, "model_not_found"),
            "no key": Failure(401, "invalid_api_key"),
            "full": Failure(503, "server_overloaded"),
            "no model loaded": Failure(503, "server_overloaded"),
        },
    ),
    DASHSCOPE: Door(
        _dashscope(events=False), _dashscope_text, _dashscope_output, _dashscope_error, _DASHSCOPE_FAILURES
    ),
    DASHSCOPE_EVENTS: Door(
        _dashscope(events=True), _dashscope_text, _dashscope_output, _dashscope_error, _DASHSCOPE_FAILURES
    ),
}


def broken(answer: httpx.Response, door: str) -> dict[str, Any]:
    """Return the error in an answer of the door's form; no place on this machine is in it."""
    assert "Traceback" not in answer.text
    assert not any(place in answer.text for place in ("/dev/", "/tmp", "/proc", "/home"))
    assert answer.headers.get("x-request-id") or "text/event-stream" in answer.headers["content-type"]
    return DOORS[door].error(answer)


def post(server: RunningServer, door: str, file: bytes | None = SPEECH, **fields: Any) -> httpx.Response:
    """Send a form; the fields stand before the file, as httpx and OpenAI's client write them."""
    files = None if file is None else {"file": ("speech.wav", file)}
    return httpx.post(f"{server.http_url}{door}", files=files, data=fields, trust_env=False, timeout=20)


def get(server: RunningServer, path: str) -> httpx.Response:
    return httpx.get(f"{server.http_url}{path}", trust_env=False, timeout=10)


def events(answer: httpx.Response) -> list[tuple[str | None, Any]]:
    """Return name and data of every server-sent event."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event"), json.loads(lines["data"])))
    return found


def assert_nothing_left(server: RunningServer) -> None:
    """Wait until no file, no decoding process and no place is held for a recording."""
    wait_until(lambda: not len(server.services.recordings) and not server.server.state.uploads.in_use)
    wait_until(lambda: not set(_stored()) - _BEFORE and not media_workers())
    wait_until(lambda: server.services.pool.leases.count == 0)


def _stored() -> list[str]:
    """Return the files of this process that have no name any more, but for those of servers that were forced to end."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(handle.readlink()))
        except FileNotFoundError:
            continue
    gone = [link for link in links if link.endswith("(deleted)") and not link.startswith("/memfd:")]
    return [link for link in gone if "/data/jobs/" not in link]


_BEFORE = frozenset(_stored())
"""What the test runner itself holds."""
