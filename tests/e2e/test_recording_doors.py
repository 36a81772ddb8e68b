"""The HTTP doors for recordings: what they take and answer, how they say what is wrong, and what they leave behind.

The engine names the loudness of what it hears. `test_same_text.py` has real speech.
"""

import asyncio
import base64
import io
import json
import socket
import wave
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3_asr_server.domain import StreamOptions
from qwen3_asr_server.errors import EngineError, EngineNotReady
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, FakeStream
from support.server import RunningServer, child_server, running_server, wait_until
from support.speech import pcm16
from support.web_server import ok, web_server

REST = "/api/transcribe"
OPENAI = "/v1/audio/transcriptions"
DOORS = (REST, OPENAI)
MAX_BYTES = 200_000
RATE = 16_000


def wav(*parts: tuple[float, float], channels: int = 1) -> bytes:
    """Return a WAV file of stretches, each with its loudness and its length in seconds."""
    samples = np.concatenate([np.full(round(seconds * RATE), loudness, np.float32) for loudness, seconds in parts])
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(pcm16(np.repeat(samples, channels)))
    return file.getvalue()


SPEECH = wav((0.0, 0.5), (0.25, 0.64), (0.0, 1.5), (0.5, 0.64), (0.0, 0.5))
SEGMENTS = 2
SILENCE = wav((0.0, 2.0))


class Fatal(EngineError):
    """An error that trying again does not mend."""

    retryable = False


class FailsLater(FakeEngine):
    """Cannot recognise any piece but the first."""

    def open_stream(self, options: StreamOptions) -> FakeStream:
        if self.opened:
            self.failures.append(Fatal("This piece cannot be recognised."))
        return super().open_stream(options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    settings = {
        "max_upload_bytes": MAX_BYTES,
        "recording_folders": str(folder),
        "fetch_trusted_networks": "127.0.0.2",
        "allowed_origins": "https://app.example.com",
    }
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


def post(server: RunningServer, door: str, file: bytes | None = SPEECH, **fields: Any) -> httpx.Response:
    """Send a form; the fields stand before the file, as httpx and OpenAI's client write them."""
    files = None if file is None else {"file": ("speech.wav", file)}
    with httpx.Client(trust_env=False, timeout=20) as http:
        return http.post(f"{server.http_url}{door}", files=files, data=fields)


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
    wait_until(lambda: not len(server.services.recordings) and not server.server.state.uploads.in_use)
    wait_until(lambda: not set(_stored()) - BEFORE and not _decoding())
    assert server.services.pool.leases.count == 0


def _stored() -> list[str]:
    """Return the files of this process that have no name any more."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(handle.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if link.endswith("(deleted)") and not link.startswith("/memfd:")]


BEFORE = frozenset(_stored())
"""What the test runner itself holds."""


def _decoding() -> list[int]:
    """Return the processes that decode files for this one."""
    children = []
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
            children += [int(pid) for pid in pids if "_media_worker" in Path(f"/proc/{pid}/cmdline").read_text()]
        except FileNotFoundError:
            continue
    return children


# ── What they answer ──


def test_rest_answers_as_documented(server: RunningServer) -> None:
    answer = post(server, REST, return_timestamps="true", dtype="bfloat16", model="None")
    body = answer.json()
    assert set(body) == {"text", "language", "timestamps", "duration_seconds", "process_time_seconds", "rtf"}
    assert body["language"] == "English"
    assert body["duration_seconds"] == 3.78
    assert body["rtf"] == pytest.approx(body["process_time_seconds"] / 3.78, abs=1e-3)
    assert [word["text"] for word in body["timestamps"]] == body["text"].split()
    assert all(0 <= word["start"] < word["end"] <= 3.78 for word in body["timestamps"])
    load, process, total = (float(answer.headers[f"X-Time-{name}"]) for name in ("Load", "Process", "Total"))
    assert 0 <= load <= total
    assert process == body["process_time_seconds"] <= total
    assert "timestamps" not in post(server, REST).json()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["json", "text", "srt", "vtt", "verbose_json"])
def test_formats(server: RunningServer, door: str, kind: str) -> None:
    text = post(server, REST).json()["text"]
    answer = post(server, door, **{"format" if door == REST else "response_format": kind})
    assert answer.status_code == 200
    match kind:
        case "json":
            assert answer.json()["text"] == text
        case "text":
            assert answer.text == f"{text}\n"
        case "srt":
            assert answer.text.startswith("1\n00:00:00,")
            assert answer.text.count(" --> ") == SEGMENTS
        case "vtt":
            assert answer.text.startswith("WEBVTT\n\n00:00:00.")
        case _:
            body = answer.json()
            assert (body["task"], body["language"], body["duration"], body["text"]) == (
                *("transcribe", "english"),
                *(3.78, text),
            )
            assert [segment["id"] for segment in body["segments"]] == [0, 1]


@pytest.mark.parametrize(
    ("granularities", "expected"),
    [
        ([], {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_granularities(server: RunningServer, name: str, granularities: list[str], expected: set[str]) -> None:
    body = post(server, OPENAI, response_format="verbose_json", **{name: granularities}).json()
    assert {"words", "segments"} & set(body) == expected
    assert body["usage"] == {"type": "duration", "seconds": 3.78}
    if "words" in expected:
        assert set(body["words"][0]) == {"word", "start", "end"}


@pytest.mark.parametrize("name", ["", "whisper-1", "gpt-4o-transcribe", "none", "fake"])
def test_models_that_openai_clients_may_name(server: RunningServer, name: str) -> None:
    assert post(server, OPENAI, model=name).json()["text"]


@pytest.mark.parametrize(
    ("language", "named"),
    [("auto", "English"), ("", "English"), ("zh", "Chinese"), ("Chinese", "Chinese"), ("Sichuan", "Chinese")],
)
@pytest.mark.parametrize("door", DOORS)
def test_languages_are_codes_or_names(server: RunningServer, door: str, language: str, named: str) -> None:
    kind = "format" if door == REST else "response_format"
    body = post(server, door, language=language, **{kind: "verbose_json"}).json()
    assert body["language"] == named.lower()


@pytest.mark.parametrize(
    ("door", "fields", "context"),
    [
        (REST, {"context": "Wu Tang"}, "Wu Tang"),
        (REST, {"initial_context": "Once upon a time"}, "Once upon a time"),
        (OPENAI, {"prompt": "Wu Tang"}, "Wu Tang"),
    ],
)
def test_what_is_said_beforehand_reaches_the_engine(door: str, fields: dict[str, str], context: str) -> None:
    engine = FakeEngine()
    with running_server(engine=engine, vad=EnergyVad()) as running:
        post(running, door, **fields)
    assert engine.opened[0].context == context


def test_the_text_so_far_is_carried_on() -> None:
    engine = FakeEngine()
    with running_server(engine=engine, vad=EnergyVad()) as running:
        told = events(post(running, REST, stream="true", use_previous_context="true"))
    (first, *_) = [data["text"] for name, data in told if name == "segment"]
    assert [options.context for options in engine.opened] == ["", first]


@pytest.mark.parametrize(
    "fields", [{"temperature": "0.7"}, {"chunking_strategy": "auto"}, {"include[]": "logprobs"}, {"user": "me"}]
)
def test_fields_without_effect(server: RunningServer, fields: dict[str, str]) -> None:
    assert post(server, OPENAI, **fields).json() == post(server, OPENAI).json()


def test_channels_kept_apart(server: RunningServer) -> None:
    left, right = (np.concatenate([np.zeros(at, np.float32), np.full(10_240, 0.25, np.float32)]) for at in (0, 32_000))
    samples = np.zeros((2, 48_000), np.float32)
    samples[0, : len(left)], samples[1, : len(right)] = left, right
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(pcm16(samples.T.ravel()))
    body = post(server, REST, file.getvalue(), split_channels="true").json()
    assert [channel["channel_id"] for channel in body["channels"]] == [0, 1]
    assert [segment["channel_id"] for segment in body["segments"]] == [0, 1]
    assert body["segments"][0]["end"] < body["segments"][1]["start"]


@pytest.mark.parametrize("door", DOORS)
def test_silence_is_an_empty_text(server: RunningServer, door: str) -> None:
    answer = post(server, door, SILENCE)
    assert (answer.status_code, answer.json()["text"]) == (200, "")


@pytest.mark.parametrize("door", DOORS)
def test_fields_may_stand_behind_the_file(server: RunningServer, door: str) -> None:
    kind = "format" if door == REST else "response_format"
    parts = [b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + SPEECH]
    parts += [f'Content-Disposition: form-data; name="{kind}"\r\n\r\ntext'.encode()]
    content = b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts) + b"--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    answer = httpx.post(server.http_url + door, content=content, headers=headers, trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")


def test_languages_and_status(server: RunningServer) -> None:
    languages = get(server, "/api/languages").json()
    assert languages["languages"] == ["Chinese", "English"]
    assert "Sichuan" in languages["dialects"]
    assert "Cantonese (Hong Kong)" not in languages["dialects"]
    assert languages["codes"] == {"Chinese": "zh", "English": "en"}
    status = get(server, "/api/status").json()
    assert (status["status"], status["reason"], status["model"]["phase"]) == ("ready", None, "ready")
    assert status["available_models"] == ["none"]
    assert status["supported_languages"] == languages["languages"]
    assert status["recordings"] == {"open": 0, "max": 16}


def test_openai_models(server: RunningServer) -> None:
    listed = get(server, "/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["none"]
    assert get(server, "/v1/models/none").json() == listed["data"][0]
    unknown = get(server, "/v1/models/some/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_other_pages_may_read_the_times(server: RunningServer) -> None:
    url, origin = server.http_url + REST, "https://app.example.com"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert httpx.options(url, headers=headers, trust_env=False).headers["access-control-allow-origin"] == origin
    files = {"file": SPEECH}
    answer = httpx.post(url, files=files, headers={"Origin": origin}, trust_env=False)
    assert answer.headers["access-control-allow-origin"] == origin
    assert "X-Time-Total" in answer.headers["access-control-expose-headers"]
    foreign = httpx.post(url, files=files, headers={"Origin": "https://evil.example"}, trust_env=False)
    assert foreign.status_code == 403


# ── As it comes ──


def test_rest_tells_progress(server: RunningServer) -> None:
    told = events(post(server, REST, stream="true"))
    names = [name for name, _ in told]
    assert names[0] == "progress"
    assert names.count("segment") == SEGMENTS
    assert names[-2:] == ["progress", "result"]
    assert told[-2][1] == {"done_seconds": 3.78, "total_seconds": 3.78}
    assert told[-1][1]["text"] == " ".join(data["text"] for name, data in told if name == "segment")
    assert told[-1][1].keys() == post(server, REST).json().keys()


def test_rest_tells_subtitles_at_the_end(server: RunningServer) -> None:
    told = events(post(server, REST, stream="true", format="srt"))
    assert told[-1] == ("result", {"content": post(server, REST, format="srt").text})


def test_openai_streams_the_text(server: RunningServer) -> None:
    told = [data for _, data in events(post(server, OPENAI, stream="true"))]
    assert [event["type"] for event in told] == [*["transcript.text.delta"] * SEGMENTS, "transcript.text.done"]
    assert "".join(event["delta"] for event in told[:-1]) == told[-1]["text"] == post(server, OPENAI).json()["text"]


@pytest.mark.parametrize("door", DOORS)
def test_a_failure_on_the_way_is_the_last_event(door: str) -> None:
    recording = wav((0.25, 0.64), (0.0, 60.0), (0.25, 0.64))
    with running_server(engine=FailsLater(), vad=EnergyVad()) as running:
        told = events(post(running, door, recording, stream="true"))
        assert_nothing_left(running)
    if door == REST:
        assert [name for name, _ in told if name != "progress"] == ["segment", "error"]
        assert told[-1][1]["code"] == "ModelUnavailable"
    else:
        assert told[0][1]["type"] == "transcript.text.delta"
        assert told[1][1]["error"]["type"] == "server_error"


# ── What is wrong ──


def broken(answer: httpx.Response, door: str) -> dict[str, Any]:
    """Return the error in an answer of the door's form; no address on this machine is in it."""
    body = answer.json()
    error = body["error"] if door == OPENAI else body
    expected = {"message", "type", "param", "code"} if door == OPENAI else {"code", "message", "request_id"}
    assert set(error) == expected
    assert "Traceback" not in answer.text
    assert not any(place in answer.text for place in ("/dev/", "/tmp", "/proc", "/home"))
    return dict(error)


WRONG_FILES = {
    "unknown format": (b"These are words and no sounds. " * 100, 400),
    "empty": (b"", 400),
    "header only": (SPEECH[:44], 400),
    "truncated header": (SPEECH[:20], 400),
    "oversized": (wav((0.25, 10.0)), 413),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_files(server: RunningServer, door: str, name: str, stream: str) -> None:
    file, status = WRONG_FILES[name]
    answer = post(server, door, file, stream=stream)
    assert answer.status_code == status
    error = broken(answer, door)
    assert (
        error["code"]
        == {
            (REST, 400): "InvalidFile",
            (REST, 413): "PayloadTooLarge",
            (OPENAI, 400): "invalid_file",
            (OPENAI, 413): "file_too_large",
        }[door, status]
    )
    assert_nothing_left(server)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_breaks_off_gives_what_was_there(server: RunningServer, door: str) -> None:
    answer = post(server, door, SPEECH[: len(SPEECH) // 2])
    assert answer.status_code == 200
    whole = post(server, door).json()["text"]
    assert whole.startswith(answer.json()["text"])
    assert 0 < len(answer.json()["text"]) < len(whole)


WRONG_FIELDS = [
    (REST, {"language": "Klingon"}, 400, None),
    (REST, {"language": "fr"}, 400, None),
    (REST, {"model": "whisper-9"}, 404, None),
    (REST, {"format": "docx"}, 400, None),
    (REST, {"return_timestamps": "perhaps"}, 400, None),
    (REST, {"dtype": "int4"}, 400, None),
    (REST, {"url": "data:audio/wav;base64,AAAA"}, 400, None),
    (OPENAI, {"language": "Klingon"}, 400, "language"),
    (OPENAI, {"language": "fr"}, 400, "language"),
    (OPENAI, {"model": "whisper-9"}, 404, "model"),
    (OPENAI, {"response_format": "diarized_json"}, 400, "response_format"),
    (OPENAI, {"timestamp_granularities[]": "letter"}, 400, "timestamp_granularities"),
    (OPENAI, {"timestamp_granularities[]": "word"}, 400, "timestamp_granularities"),
    (OPENAI, {"stream": "true", "response_format": "srt"}, 400, "stream"),
]


@pytest.mark.parametrize(("door", "fields", "status", "param"), WRONG_FIELDS)
def test_wrong_fields(server: RunningServer, door: str, fields: dict[str, str], status: int, param: str | None) -> None:
    answer = post(server, door, **fields)
    assert answer.status_code == status
    error = broken(answer, door)
    assert error.get("param") == param
    assert_nothing_left(server)


MULTIPART = "multipart/form-data; boundary=cut"
PART = b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
NO_FORMS = {
    "nothing": ("", b""),
    "another type": ("audio/wav", SPEECH),
    "no boundary": ("multipart/form-data", SPEECH),
    "no parts": (MULTIPART, b"--cut--\r\n"),
    "no file": (MULTIPART, PART % (b"language", b"en") + b"--cut--\r\n"),
    "two files": (MULTIPART, 2 * (PART % (b"file", SPEECH[:100])) + b"--cut--\r\n"),
    "breaks off": (MULTIPART, PART % (b"file", SPEECH)),
    "is no form": (MULTIPART, SPEECH),
    "not UTF-8": (MULTIPART, PART % (b"language", b"\xff") + b"--cut--\r\n"),
    "too many parts": (MULTIPART, 100 * (PART % (b"x", b"y")) + b"--cut--\r\n"),
    "no JSON": ("application/json", b"{"),
    "deep JSON": ("application/json", b"[" * 100_000),
    "a list": ("application/json", b"[]"),
    "no address": ("application/json", b"{}"),
    "an object for a field": ("application/json", b'{"url": {}}'),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", NO_FORMS)
def test_no_forms(server: RunningServer, door: str, name: str) -> None:
    kind, content = NO_FORMS[name]
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(server.http_url + door, content=content, headers=headers, trust_env=False, timeout=10)
    assert answer.status_code == 400
    broken(answer, door)
    assert_nothing_left(server)


def test_a_field_may_not_fill_the_memory(server: RunningServer) -> None:
    answer = post(server, REST, context="a" * 1_100_000)
    assert answer.status_code == 413
    assert_nothing_left(server)


@pytest.mark.parametrize("door", DOORS)
def test_no_key_no_transcript(door: str) -> None:
    with running_server({"api_keys": "sk-right"}, engine=FakeEngine(), vad=EnergyVad()) as running:
        refused = post(running, door)
        assert refused.status_code == 401
        error = broken(refused, door)
        assert error["code"] == ("InvalidApiKey" if door == REST else "invalid_api_key")
        url = running.http_url + door
        headers = {"Authorization": "Bearer sk-right"}
        assert httpx.post(url, files={"file": SPEECH}, headers=headers, trust_env=False).status_code == 200


def test_unknown_addresses_below_v1_answer_in_openais_form(server: RunningServer) -> None:
    answer = get(server, "/v1/nothing")
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("door", DOORS)
def test_word_times_that_nobody_has(door: str) -> None:
    with running_server(engine=FakeEngine(word_times=False), vad=EnergyVad()) as running:
        fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word", "return_timestamps": "true"}
        answer = post(running, door, **fields)
    assert answer.status_code == 400
    assert "WORD_TIMES" in broken(answer, door)["message"]


@pytest.mark.parametrize("door", DOORS)
def test_a_full_server_says_when_to_come_back(door: str) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    with running_server({"max_recordings": 1}, engine=engine, vad=EnergyVad()) as running, httpx.Client() as http:
        with http.stream("POST", running.http_url + REST, files={"file": SPEECH}, data={"stream": "true"}) as first:
            assert first.status_code == 200
            answer = post(running, door)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            broken(answer, door)
        assert_nothing_left(running)


@pytest.mark.parametrize("door", DOORS)
def test_a_model_that_cannot_be_loaded(door: str) -> None:
    engine = FakeEngine(start_failure=EngineNotReady("There is no such GPU."))
    with running_server({"model_loading": "lazy"}, engine=engine, vad=EnergyVad()) as running:
        answer = post(running, door)
        assert answer.status_code == 503
        assert broken(answer, door)["message"] == "There is no such GPU."
        assert_nothing_left(running)
        engine.start_failure = None
        assert post(running, door).status_code == 200


def test_the_model_is_loaded_again_for_a_recording(server: RunningServer) -> None:
    offloaded = httpx.post(f"{server.http_url}/api/gpu-offload", trust_env=False)
    assert offloaded.json()["released"]
    assert post(server, REST).json()["text"]
    assert get(server, "/api/status").json()["model"]["phase"] == "ready"


@pytest.mark.parametrize("door", DOORS)
def test_an_upload_that_stops(server: RunningServer, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = server.server.state
    monkeypatch.setattr(state, "source_limits", replace(state.source_limits, upload_stall_s=0.1))
    request = httpx.Request("POST", server.http_url + door, files={"file": SPEECH})
    with _connected(server) as client:
        _send(client, request, request.read()[:60_000])
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert_nothing_left(server)


# ── Where recordings come from ──


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


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:{port}/speech.wav", "SourceRefused"),
        ("http://[::1]/speech.wav", "SourceRefused"),
        ("http://169.254.169.254/", "SourceRefused"),
        ("http://127.0.0.2:1/speech.wav", "SourceUnreachable"),
        ("/etc/passwd", "SourceRefused"),
        ("{folder}/missing.wav", "SourceUnreachable"),
        ("{folder}/../passwd", "SourceRefused"),
        ("ftp://example.com/a.wav", "InvalidParameter"),
        ("data:audio/wav;base64,!", "InvalidParameter"),
        ("data:audio/wav;base64,AAAA", "InvalidFile"),
    ],
)
async def test_addresses_with_nothing_behind(
    server: RunningServer, web: Any, folder: Path, url: str, code: str
) -> None:
    answer = await ask_for(server, url.format(port=web.port, folder=folder))
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    broken(answer, REST)
    assert str(folder) not in answer.text
    assert not web.requests
    assert_nothing_left(server)


def test_openai_takes_no_address(server: RunningServer) -> None:
    answer = httpx.post(server.http_url + OPENAI, json={"url": "data:audio/wav;base64,AAAA"}, trust_env=False)
    assert (answer.status_code, broken(answer, OPENAI)["param"]) == (400, "file")


# ── Clients that leave ──


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
