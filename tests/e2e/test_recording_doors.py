"""The HTTP doors for recordings: what they take and what they answer, at once and as it comes.

The engine names the loudness of what it hears. `test_recording_errors.py` has what goes wrong, `test_same_text.py`
real speech.
"""

import asyncio
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3_asr_server.frontends import _answer, native, openai
from qwen3_asr_server.runtime.gpu import GpuWatch
from qwen3_asr_server.text.subtitles import as_srt
from qwen3_asr_server.text.transcript import Transcript
from support.doors import (
    CHAT,
    OPENAI,
    REST,
    SEGMENTS,
    SPEECH,
    assert_nothing_left,
    audio_url,
    chat,
    data_url,
    events,
    get,
    post,
    wav,
    wav_of,
)
from support.energy_vad import EnergyVad
from support.fake_engine import FailsLater, FakeEngine
from support.server import RunningServer, running_server

DOORS = (REST, OPENAI)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(
        {"allowed_origins": "https://app.example.com"}, engine=FakeEngine(), vad=EnergyVad()
    ) as running:
        yield running


# What they answer


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


@pytest.mark.parametrize("name", ["", "whisper-1", "gpt-4o-transcribe", "none", "fake", "Qwen/fake"])
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


def test_the_text_of_the_piece_before_is_carried_on() -> None:
    """And nothing of those before it, though there would be room."""
    engine, pause = FakeEngine(), (0.0, 1.5)
    recording = wav((0.25, 0.64), pause, (0.5, 0.64), pause, (0.75, 0.64), pause)
    with running_server(engine=engine, vad=EnergyVad()) as running:
        told = events(post(running, REST, recording, stream="true", use_previous_context="true"))
    first, second, _ = [data["text"] for name, data in told if name == "segment"]
    assert first != second
    assert [options.context for options in engine.opened] == ["", first, second]


@pytest.mark.parametrize(
    "fields", [{"temperature": "0.7"}, {"chunking_strategy": "auto"}, {"include[]": "logprobs"}, {"user": "me"}]
)
def test_fields_without_effect(server: RunningServer, fields: dict[str, str]) -> None:
    assert post(server, OPENAI, **fields).json() == post(server, OPENAI).json()


def test_channels_kept_apart(server: RunningServer) -> None:
    left, right = (np.concatenate([np.zeros(at, np.float32), np.full(10_240, 0.25, np.float32)]) for at in (0, 32_000))
    samples = np.zeros((48_000, 2), np.float32)
    samples[: len(left), 0], samples[: len(right), 1] = left, right
    body = post(server, REST, wav_of(samples), split_channels="true").json()
    assert [channel["channel_id"] for channel in body["channels"]] == [0, 1]
    assert [segment["channel_id"] for segment in body["segments"]] == [0, 1]
    assert body["segments"][0]["end"] < body["segments"][1]["start"]


def stereo(left: tuple[float, float], right: tuple[float, float]) -> bytes:
    """Return 3 s of two parties, each of whom speaks from one time to another."""
    at = np.arange(48_000) / 16_000
    return wav_of(np.stack([0.25 * ((at >= first) & (at < last)) for first, last in (left, right)], axis=1))


NEVER = (0.0, 0.0)


@pytest.mark.parametrize(
    ("left", "right", "speak"),
    [
        (NEVER, (0.5, 1.5), [False, True]),
        ((0.5, 1.5), NEVER, [True, False]),
        (NEVER, NEVER, [False, False]),
    ],
)
def test_a_silent_channel_keeps_its_place(
    server: RunningServer, left: tuple[float, float], right: tuple[float, float], speak: list[bool]
) -> None:
    call = stereo(left, right)
    for kind, name in (("json", "channel_id"), ("verbose_json", "channel")):
        channels = post(server, REST, call, split_channels="true", format=kind).json()["channels"]
        assert [channel[name] for channel in channels] == [0, 1]
        assert [bool(channel["text"]) for channel in channels] == speak
    for kind, mark in (("text", "[{}] "), ("srt", "[{}] "), ("vtt", "<v Channel {}>")):
        text = post(server, REST, call, split_channels="true", format=kind).text
        assert [mark.format(channel) in text for channel in range(2)] == speak


@pytest.mark.parametrize(
    ("kind", "words", "name"), [("json", "timestamps", "channel_id"), ("verbose_json", "words", "channel")]
)
def test_words_of_channels_are_in_the_order_of_time(server: RunningServer, kind: str, words: str, name: str) -> None:
    call = stereo((0.3, 2.5), (0.7, 1.6))
    apart, mixed = (
        post(server, REST, call, format=kind, return_timestamps="true", split_channels=split).json()[words]
        for split in ("true", "false")
    )
    channels, starts = [word[name] for word in apart], [word["start"] for word in apart]
    assert starts == sorted(starts)
    assert channels != sorted(channels)
    assert set(channels) == {0, 1}
    assert not any(name in word for word in mixed)


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
    assert status["queue"] == {"live": 0, "recorded": 0}


@pytest.mark.parametrize("path", ["/api/status", "/health"])
def test_memory_of_gpus(server: RunningServer, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, tool = ("no-such-tool",), (sys.executable, "-c", "print('0, GPU-a, NVIDIA H100, 81559, 1024, 80535')")
    known = {"index": 0, "name": "NVIDIA H100", "total_mib": 81559, "used_mib": 1024, "free_mib": 80535}
    for command, expected in ((nobody, None), (tool, [known])):
        monkeypatch.setattr(server.server.state, "gpu", GpuWatch(command))
        assert get(server, path).json()["gpu"] == expected


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


def test_the_model_is_loaded_again_for_a_recording(server: RunningServer) -> None:
    offloaded = httpx.post(f"{server.http_url}/api/gpu-offload", trust_env=False)
    assert offloaded.json()["released"]
    assert post(server, REST).json()["text"]
    assert get(server, "/api/status").json()["model"]["phase"] == "ready"


# As it comes


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


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    ("module", "door", "fields"),
    [(native, REST, {"format": "srt"}), (native, REST, {"stream": "true", "format": "srt"}), (openai, OPENAI, {})],
)
def test_live_sessions_do_not_wait_until_subtitles_are_written(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, module: ModuleType, door: str, fields: dict[str, str]
) -> None:
    on_the_loop = []

    def render(transcript: Transcript) -> str:
        on_the_loop.append(_on_a_loop())
        return as_srt(transcript)

    texts = module._TEXTS
    monkeypatch.setitem(texts, "srt", (render, texts["srt"][1]) if isinstance(texts["srt"], tuple) else render)
    assert post(server, door, **({"response_format": "srt"} | fields)).status_code == 200
    assert on_the_loop == [False]


@pytest.mark.parametrize(
    ("door", "request_"),
    [
        (REST, {"files": {"file": SPEECH}, "data": {"stream": "true", "format": "verbose_json"}}),
        (OPENAI, {"files": {"file": SPEECH}, "data": {"stream": "true"}}),
        (CHAT, {"json": chat(audio_url(data_url(SPEECH)), stream=True, stream_options={"include_usage": True})}),
    ],
)
def test_live_sessions_do_not_wait_until_the_last_event_is_written(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, door: str, request_: dict[str, Any]
) -> None:
    on_the_loop = []
    write_down = _answer.event_of

    def event_of(data: object, name: str | None = None) -> str:
        on_the_loop.append(_on_a_loop())
        return write_down(data, name)

    monkeypatch.setattr(_answer, "event_of", event_of)
    assert httpx.post(server.http_url + door, **request_, trust_env=False, timeout=20).status_code == 200
    assert on_the_loop == [True] * (len(on_the_loop) - 1) + [False]


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
