"""Recordings as chat messages, as raw clients send them. `test_openai_client.py` has the `openai` package,
`test_recording_errors.py` what may go wrong at every door.
"""

import asyncio
import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.doors import (
    CHAT,
    COMPATIBLE,
    SILENCE,
    SPEECH,
    assert_nothing_left,
    broken,
    chat,
    data_url,
    events,
    get,
    wav,
)
from support.energy_vad import EnergyVad
from support.fake_engine import FailsLater, FakeEngine
from support.server import RunningServer, running_server, wait_until
from support.web_server import ok, web_server

DOORS = (CHAT, COMPATIBLE)
BASE64 = base64.b64encode(SPEECH).decode()
AUDIO_URL = {"type": "audio_url", "audio_url": {"url": data_url(SPEECH)}}
INPUT_AUDIO = {"type": "input_audio", "input_audio": {"data": data_url(SPEECH), "format": "wav"}}
WORDS = 5
HEADER = "language English<asr_text>"
ENGLISH = [{"type": "audio_info", "language": "en", "emotion": "neutral"}]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def server(engine: FakeEngine, folder: Path) -> Iterator[RunningServer]:
    settings = {"recording_folders": str(folder), "fetch_trusted_networks": "127.0.0.1", "max_message_bytes": 400_000}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        yield running


@pytest.fixture(scope="module")
def text(server: RunningServer) -> str:
    """Return what the engine makes of the speech."""
    return str(message(ask(server, COMPATIBLE, chat(INPUT_AUDIO)))["content"])


def ask(server: RunningServer, door: str, body: Any) -> httpx.Response:
    return httpx.post(f"{server.http_url}{door}", json=body, trust_env=False, timeout=60)


def message(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0]["message"])


# Two forms of an answer


@pytest.mark.parametrize(
    ("door", "part", "fields", "raw"),
    [
        (CHAT, AUDIO_URL, {}, True),
        (CHAT, AUDIO_URL, {"asr_options": {"language": "auto", "custom_vocabulary_word": [{"word": "Qwen"}]}}, True),
        (CHAT, AUDIO_URL, {"response_format": {"type": "text"}}, False),
        (CHAT, INPUT_AUDIO, {}, False),
        (COMPATIBLE, AUDIO_URL, {}, False),
        (COMPATIBLE, INPUT_AUDIO, {}, False),
    ],
)
def test_answers_are_raw_or_clean(
    server: RunningServer, text: str, door: str, part: Any, fields: Any, raw: bool
) -> None:
    answer = ask(server, door, chat(part, model="none", **fields))
    assert len(text.split()) == WORDS
    whole = {"role": "assistant", "content": HEADER + text if raw else text}
    assert message(answer) == whole | ({} if raw else {"annotations": ENGLISH})
    body = answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "none")
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["finish_reason"] == "stop"
    told = chunks(ask(server, door, chat(part, stream=True, **fields)))
    assert "".join(delta.get("content", "") for delta in deltas(told)) == whole["content"]


@pytest.mark.parametrize(
    ("door", "part", "content"), [(CHAT, "audio_url", "language None<asr_text>"), (COMPATIBLE, "input_audio", "")]
)
def test_silence_has_its_form_too(server: RunningServer, door: str, part: str, content: str) -> None:
    name = "url" if part == "audio_url" else "data"
    body = chat({"type": part, part: {name: data_url(SILENCE)}})
    answer = ask(server, door, body)
    assert message(answer)["content"] == content
    assert answer.json()["usage"]["completion_tokens"] == 0
    told = deltas(chunks(ask(server, door, body | {"stream": True})))
    assert [delta.get("content") for delta in told] == ["", content, None]


@pytest.mark.parametrize(("language", "header"), [("zh", "Chinese"), ("Chinese", "Chinese"), ("Sichuan", "Chinese")])
def test_a_language_that_is_forced(server: RunningServer, language: str, header: str) -> None:
    body = chat(AUDIO_URL, asr_options={"language": language, "enable_itn": True})
    assert message(ask(server, CHAT, body))["content"].startswith(f"language {header}<asr_text>")
    assert message(ask(server, COMPATIBLE, body))["annotations"][0]["language"] == "zh"


def test_the_setting_for_emotions_leaves_them_out() -> None:
    with running_server({"emotion": ""}, engine=FakeEngine(), vad=EnergyVad()) as running:
        assert message(ask(running, COMPATIBLE, chat(INPUT_AUDIO)))["annotations"] == [
            {"type": "audio_info", "language": "en"}
        ]


def test_usage_counts_what_can_be_counted(server: RunningServer) -> None:
    system = {"role": "system", "content": "Names: 不二家, Qwen."}
    body = chat(INPUT_AUDIO)
    body["messages"].insert(0, system)
    assert ask(server, COMPATIBLE, body).json()["usage"] == {
        "prompt_tokens": 95 + 5,
        "completion_tokens": WORDS,
        "total_tokens": 100 + WORDS,
        "prompt_tokens_details": {"audio_tokens": 95, "text_tokens": 5},
        "completion_tokens_details": {"text_tokens": WORDS},
        "seconds": 4,
    }


# As it comes


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks of a stream that has come to its end."""
    assert answer.status_code == 200, answer.text
    *told, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in told]


def deltas(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in told]


def test_chunks(server: RunningServer, text: str) -> None:
    told = chunks(ask(server, COMPATIBLE, chat(INPUT_AUDIO, stream=True)))
    first, second = text.split()[:2], text.split()[2:]
    assert deltas(told) == [
        {"role": "assistant", "content": ""},
        {"content": " ".join(first), "annotations": ENGLISH},
        {"content": " " + " ".join(second), "annotations": ENGLISH},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None, None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in told}) == 1
    assert told[0]["object"] == "chat.completion.chunk"
    assert not any("usage" in chunk for chunk in told)


def test_usage_at_the_end_of_a_stream(server: RunningServer) -> None:
    body = chat(INPUT_AUDIO)
    *told, last = chunks(ask(server, CHAT, body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert all(chunk["usage"] is None for chunk in told)
    assert last["choices"] == []
    assert last["usage"] == ask(server, CHAT, body).json()["usage"]


# What clients send


def qwen_code(data: str) -> dict[str, Any]:
    return {
        "model": "qwen3-asr-flash",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Qwen, vLLM"}]},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]},
        ],
        "stream": False,
        "asr_options": {"language": "zh", "enable_itn": False},
    }


def node_sample(data: str) -> dict[str, Any]:
    """Return what the vendor's sample for Node sends: there `extra_body` is a field like any other."""
    return {
        "model": "qwen3-asr-flash",
        "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data}}]}],
        "stream": False,
        "extra_body": {"asr_options": {"language": "zh", "custom_vocabulary_word": ["Qwen", "vLLM"]}},
    }


def blog(data: str) -> dict[str, Any]:
    """Return the listing with a misprint."""
    return {
        "model": "none",
        "messages": [{"role": "user", "content": [{"type": "audio url", "audio url": {"url": data}}]}],
        "asr_options": {"language": "zh", "custom_vocabulary_word": [{"word": "Qwen"}, {"word": "vLLM"}]},
    }


@pytest.mark.parametrize("request_of", [qwen_code, node_sample, blog])
@pytest.mark.parametrize("door", DOORS)
def test_known_requests(server: RunningServer, engine: FakeEngine, text: str, door: str, request_of: Any) -> None:
    content = message(ask(server, door, request_of(data_url(SPEECH))))["content"]
    assert content.rpartition("<asr_text>")[2] == text
    assert (engine.opened[-1].language, engine.opened[-1].context) == ("zh", "Qwen, vLLM")


MP3_LIKE = b"\xff\xfb\x90" + SPEECH
PARTS: dict[str, Any] = {
    "base64 alone": {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
    "URL-safe base64": {"type": "input_audio", "input_audio": {"data": BASE64.replace("+", "-").replace("/", "_")}},
    "no type": {"input_audio": {"data": BASE64}},
    "an address that is a string": {"type": "audio_url", "audio_url": data_url(SPEECH)},
    "half a misprint": {"type": "audio url", "audio_url": {"url": data_url(SPEECH)}},
    "the other half": {"type": "audio_url", "audio url": {"url": data_url(SPEECH)}},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(server: RunningServer, text: str, name: str) -> None:
    assert message(ask(server, COMPATIBLE, chat(PARTS[name])))["content"] == text


def test_base64_may_begin_like_a_path(server: RunningServer) -> None:
    data = base64.b64encode(MP3_LIKE).decode()
    assert data.startswith("//")
    answer = ask(server, CHAT, chat({"type": "input_audio", "input_audio": {"data": data}}))
    assert (answer.status_code, broken(answer, CHAT)["code"]) == (400, "invalid_file")


async def test_addresses(server: RunningServer, folder: Path, text: str) -> None:
    (folder / "speech.wav").write_bytes(SPEECH)
    async with web_server() as web, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        web.answers["/speech.wav"] = ok(SPEECH)
        for url in (web.url("/speech.wav"), f"file://{folder}/speech.wav"):
            for part in ({"audio_url": {"url": url}}, {"input_audio": {"data": url}}):
                answer = await http.post(server.http_url + COMPATIBLE, json=chat({"type": next(iter(part)), **part}))
                assert message(answer)["content"] == text


@pytest.mark.parametrize(
    "system", ["Wu Tang", ["Wu Tang"], [{"type": "text", "text": "Wu Tang"}], [{"text": "Wu Tang"}]]
)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_context(server: RunningServer, engine: FakeEngine, role: str, system: Any) -> None:
    body = chat(INPUT_AUDIO)
    body["messages"].insert(0, {"role": role, "content": system})
    message(ask(server, CHAT, body))
    assert engine.opened[-1].context == "Wu Tang"


def test_other_messages_and_fields_have_no_effect(server: RunningServer, engine: FakeEngine, text: str) -> None:
    body = {
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "What is said here?"}, INPUT_AUDIO]},
        ],
        "temperature": 0.7,
        "max_tokens": 1,
        "n": 3,
        "top_p": 0.1,
        "tools": [{"type": "function"}],
        "seed": 5,
        "stop": "a",
        "modalities": ["text", "audio"],
        "user": "me",
        "logprobs": True,
        "stream_options": None,
    }
    assert message(ask(server, CHAT, body))["content"] == text
    assert len(ask(server, CHAT, body).json()["choices"]) == 1
    assert engine.opened[-1].context == ""


def test_options_at_the_top_count(server: RunningServer, engine: FakeEngine) -> None:
    inner = {"asr_options": {"language": "en", "custom_vocabulary_word": ["Qwen"]}}
    message(ask(server, CHAT, chat(INPUT_AUDIO, asr_options={"language": "zh"}, extra_body=inner)))
    assert (engine.opened[-1].language, engine.opened[-1].context) == ("zh", "Qwen")


@pytest.mark.parametrize(
    "name", [None, "", "none", "fake", "qwen3-asr-flash", "qwen3-asr-flash-2025-09-08", "qwen3-asr-flash-us"]
)
def test_models_that_chat_clients_may_name(server: RunningServer, text: str, name: str | None) -> None:
    answer = ask(server, COMPATIBLE, chat(INPUT_AUDIO, model=name))
    assert message(answer)["content"] == text
    assert answer.json()["model"] == (name or "none")


def test_the_vendors_models(server: RunningServer) -> None:
    assert get(server, "/compatible-mode/v1/models").json() == get(server, "/v1/models").json()
    assert get(server, "/compatible-mode/v1/models/none").status_code == 200


# What is wrong


def two(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}, {"role": "user", "content": [part]}]}


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "messages"),
    "messages are no list": ({"messages": "Hello"}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "no message": ({"messages": ["Hello"]}, "messages[0]"),
    "too many messages": (
        {"messages": [*chat(AUDIO_URL)["messages"], *[{"role": "user", "content": []}] * 1200]},
        "messages",
    ),
    "too many parts": (
        {"messages": [{"role": "user", "content": [AUDIO_URL, *["Hello"] * 1200]}]},
        "messages[0].content",
    ),
    "no audio": ({"messages": [{"role": "user", "content": "Hello!"}]}, "messages"),
    "several audios": (two(AUDIO_URL), "messages"),
    "an unknown role": ({"messages": [{"role": "singer", "content": []}]}, "messages[0].role"),
    "content is a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "a part is a number": (chat(5), "messages[0].content[0]"),  # type: ignore[arg-type]
    "a part of an unknown type": (chat({"type": "image_url"}), "messages[0].content[0].type"),
    "a part of no type": (chat({}), "messages[0].content[0].type"),
    "an empty address": (chat({"type": "audio_url", "audio_url": {}}), "messages[0].content[0].audio_url.url"),
    "an address that is none": (chat({"type": "audio_url", "audio_url": 5}), "messages[0].content[0].audio_url"),
    "no data": (chat({"type": "input_audio"}), "messages[0].content[0].input_audio.data"),
    "data that is none": (
        chat({"type": "input_audio", "input_audio": {"data": 5}}),
        "messages[0].content[0].input_audio.data",
    ),
    "a model that is none": (chat(AUDIO_URL, model=5), "model"),
    "an unknown model": (chat(AUDIO_URL, model="whisper-9"), "model"),
    "an unknown language": (chat(AUDIO_URL, asr_options={"language": "Klingon"}), "asr_options.language"),
    "options that are none": (chat(AUDIO_URL, asr_options=5), "asr_options"),
    "wrong hotwords": (
        chat(AUDIO_URL, extra_body={"asr_options": {"custom_vocabulary_word": [{}]}}),
        "asr_options.custom_vocabulary_word[0].word",
    ),
    "another response format": (
        chat(AUDIO_URL, response_format={"type": "json_object"}),
        "response_format.type",
    ),
    "a stream that is none": (chat(AUDIO_URL, stream="yes"), "stream"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(server: RunningServer, door: str, name: str) -> None:
    body, param = WRONG[name]
    answer = ask(server, door, body)
    assert answer.status_code == (404 if name == "an unknown model" else 400)
    error = broken(answer, door)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert_nothing_left(server)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"[]", 400),
        ("application/json; charset=utf-8", b"\xff", 400),
        ("application/json", b'{"x": "' + b"a" * 300_000, 400),
        ("application/json", b'{"x": "' + b"a" * 400_000 + b'"}', 413),
        ("text/plain", json.dumps(chat(AUDIO_URL)).encode(), 400),
        ("", b"", 400),
    ],
)
def test_bodies_that_are_no_requests(server: RunningServer, door: str, kind: str, content: bytes, status: int) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(server.http_url + door, content=content, headers=headers, trust_env=False, timeout=10)
    assert answer.status_code == status
    broken(answer, door)
    assert_nothing_left(server)


def test_a_large_body_is_refused_on_the_way(server: RunningServer) -> None:
    def content() -> Iterator[bytes]:
        for _ in range(10):
            yield b"a" * 100_000

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.http_url + CHAT, content=content(), headers=headers, trust_env=False, timeout=10)
    assert (answer.status_code, broken(answer, CHAT)["code"]) == (413, "file_too_large")
    assert_nothing_left(server)


@pytest.mark.parametrize("path", ["/v1/audio/translations", "/compatible-mode/v1/audio/transcriptions"])
def test_doors_that_are_not_there(server: RunningServer, path: str) -> None:
    answer = ask(server, path, {})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"Not Found: POST {path}"


def test_a_failure_on_the_way_is_the_last_chunk() -> None:
    recording = data_url(wav((0.25, 0.64), (0.0, 60.0), (0.25, 0.64)))
    with running_server(engine=FailsLater(), vad=EnergyVad()) as running:
        body = chat({"type": "input_audio", "input_audio": {"data": recording}}, stream=True)
        told = [data for _, data in events(ask(running, COMPATIBLE, body))]
        assert_nothing_left(running)
    assert told[-2]["choices"][0]["delta"]["content"]
    assert told[-1]["error"]["type"] == "server_error"


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(stream: bool) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    with running_server(engine=engine, vad=EnergyVad()) as running:
        request = httpx.Request("POST", running.http_url + CHAT, json=chat(AUDIO_URL, stream=stream))
        host, _, port = running.http_url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            lines = [f"POST {CHAT} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
            client.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
            wait_until(lambda: bool(engine.steps))
            assert len(running.services.recordings) == 1
        assert_nothing_left(running)
        wait_until(lambda: engine.open_streams == 0)
