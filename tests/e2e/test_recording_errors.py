"""What the doors for recordings say when something is wrong, each in its own form, and that nothing is left behind.

`support/doors.py` has the doors, `FAULTS` what goes wrong: a new door, or a new fault, is a row.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from qwen3_asr_server.errors import EngineNotReady
from support.doors import (
    CHAT,
    COMPATIBLE,
    DASHSCOPE,
    DASHSCOPE_EVENTS,
    DOORS,
    OPENAI,
    REST,
    SILENCE,
    SPEECH,
    Asked,
    assert_nothing_left,
    audio_url,
    broken,
    chat,
    data_url,
    get,
    post,
    user,
    wav,
)
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import RunningServer, running_server

FORMS = (REST, OPENAI)
HALF_OF_IT = SPEECH[: len(SPEECH) // 2]
MAX_BYTES = 200_000

FAULTS: dict[str, tuple[str, Asked]] = {
    "no file": ("no file", Asked(file=None)),
    "unknown format": ("unreadable", Asked(b"These are words and no sounds. " * 100)),
    "empty": ("unreadable", Asked(b"")),
    "header only": ("unreadable", Asked(SPEECH[:44])),
    "truncated header": ("unreadable", Asked(SPEECH[:20])),
    "oversized": ("oversized", Asked(wav((0.25, 10.0)))),
    "no such language": ("wrong language", Asked(language="Klingon")),
    "a language that the model does not know": ("wrong language", Asked(language="fr")),
    "no such model": ("wrong model", Asked(model="whisper-9")),
    "nobody answers": ("unreachable", Asked(url="http://127.0.0.2:1/speech.wav")),
    "no such path": ("unreachable", Asked(url="{folder}/missing.wav")),
    "this machine": ("refused", Asked(url="http://127.0.0.1:9/speech.wav")),
    "this machine by IPv6": ("refused", Asked(url="http://[::1]/speech.wav")),
    "where clouds keep their keys": ("refused", Asked(url="http://169.254.169.254/")),
    "a path elsewhere": ("refused", Asked(url="/etc/passwd")),
    "a path that climbs": ("refused", Asked(url="{folder}/../passwd")),
    "another scheme": ("no address", Asked(url="ftp://example.com/a.wav")),
    "no base64": ("no address", Asked(url="data:audio/wav;base64,!")),
    "a data URL without audio": ("unreadable", Asked(url="data:audio/wav;base64,AAAA")),
}
"""What is wrong, by its name in a door's `failures`, and how to come by it."""

CASES = [
    (door, fault)
    for door, how in DOORS.items()
    for fault, (wrong, asked) in FAULTS.items()
    if wrong in how.failures and (asked.url is None or "unreachable" in how.failures)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    settings = {
        "max_upload_bytes": MAX_BYTES,
        "recording_folders": str(folder),
        "fetch_trusted_networks": "127.0.0.2",
    }
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


def assert_says(answer: httpx.Response, door: str, wrong: str) -> None:
    expected = DOORS[door].failures[wrong]
    assert (answer.status_code, broken(answer, door)["code"]) == (expected.status, expected.code)


@pytest.mark.parametrize(("door", "fault"), CASES)
def test_every_fault_at_every_door(server: RunningServer, folder: Path, door: str, fault: str) -> None:
    wrong, asked = FAULTS[fault]
    url = asked.url and asked.url.format(folder=folder)
    answer = DOORS[door].ask(server.http_url, replace(asked, url=url))
    assert_says(answer, door, wrong)
    assert str(folder) not in answer.text
    assert_nothing_left(server)


@pytest.mark.parametrize("door", FORMS)
@pytest.mark.parametrize(
    "fault",
    [fault for fault, (wrong, asked) in FAULTS.items() if wrong in ("unreadable", "oversized") and asked.url is None],
)
def test_what_is_wrong_before_the_first_event_has_a_status(server: RunningServer, door: str, fault: str) -> None:
    wrong, asked = FAULTS[fault]
    assert_says(post(server, door, asked.file, stream="true"), door, wrong)
    assert_nothing_left(server)


@pytest.mark.parametrize("door", DOORS)
def test_silence_is_an_empty_text(server: RunningServer, door: str) -> None:
    answer = DOORS[door].ask(server.http_url, Asked(SILENCE))
    assert (answer.status_code, DOORS[door].text(answer)) == (200, "")


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_breaks_off_gives_what_was_there(server: RunningServer, door: str) -> None:
    whole, half = (DOORS[door].ask(server.http_url, Asked(file)) for file in (SPEECH, HALF_OF_IT))
    assert half.status_code == 200
    assert DOORS[door].text(whole).startswith(DOORS[door].text(half))
    assert 0 < len(DOORS[door].text(half)) < len(DOORS[door].text(whole))
    assert [DOORS[door].body(answer).get("audio_truncated") for answer in (whole, half)] == [None, True]
    in_a_header = None if door == DASHSCOPE_EVENTS else "true"  # events begin before anybody knows
    assert [answer.headers.get("X-Audio-Truncated") for answer in (whole, half)] == [None, in_a_header]


@pytest.mark.parametrize("kind", ["text", "srt", "vtt", "json", "verbose_json"])
@pytest.mark.parametrize("door", FORMS)
def test_every_format_says_in_a_header_that_the_file_breaks_off(server: RunningServer, door: str, kind: str) -> None:
    for file, told in ((SPEECH, None), (HALF_OF_IT, "true")):
        answer = post(server, door, file, **{"format" if door == REST else "response_format": kind})
        assert answer.headers.get("X-Audio-Truncated") == told
        if "json" in kind:
            assert answer.json().get("audio_truncated") == (True if told else None)


STREAMED = {
    "REST": (REST, lambda file: {"files": {"file": file}, "data": {"stream": "true"}}),
    "REST, subtitles": (REST, lambda file: {"files": {"file": file}, "data": {"stream": "true", "format": "srt"}}),
    "OpenAI": (OPENAI, lambda file: {"files": {"file": file}, "data": {"stream": "true"}}),
    "chat": (CHAT, lambda file: {"json": chat(audio_url(data_url(file)), stream=True)}),
}


@pytest.mark.parametrize("name", STREAMED)
def test_the_last_event_says_that_the_file_breaks_off(server: RunningServer, name: str) -> None:
    door, request = STREAMED[name]
    for file, told in ((SPEECH, 0), (HALF_OF_IT, 1)):
        answer = httpx.post(server.http_url + door, **request(file), trust_env=False, timeout=20)
        *before, last = answer.text.replace("data: [DONE]\n\n", "").removesuffix("\n\n").split("\n\n")
        assert last.count('"audio_truncated": true') == told
        assert "audio_truncated" not in "".join(before)


@pytest.mark.parametrize("door", DOORS)
def test_no_key_no_transcript(door: str) -> None:
    with running_server({"api_keys": "sk-right"}, engine=FakeEngine(), vad=EnergyVad()) as running:
        ask = DOORS[door].ask
        assert_says(ask(running.http_url, Asked()), door, "no key")
        assert_says(ask(running.http_url, Asked(key="sk-wrong")), door, "no key")
        assert DOORS[door].text(ask(running.http_url, Asked(key="sk-right")))


@pytest.mark.parametrize("door", DOORS)
def test_a_full_server_says_when_to_come_back(door: str) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    with running_server({"max_recordings": 1}, engine=engine, vad=EnergyVad()) as running, httpx.Client() as http:
        with http.stream("POST", running.http_url + REST, files={"file": SPEECH}, data={"stream": "true"}) as first:
            assert first.status_code == 200
            answer = DOORS[door].ask(running.http_url, Asked())
            assert_says(answer, door, "full")
            assert int(answer.headers["retry-after"]) > 0
        assert_nothing_left(running)


@pytest.mark.parametrize("door", DOORS)
def test_a_model_that_cannot_be_loaded(door: str) -> None:
    engine = FakeEngine(start_failure=EngineNotReady("There is no such GPU."))
    with running_server({"model_loading": "lazy"}, engine=engine, vad=EnergyVad()) as running:
        answer = DOORS[door].ask(running.http_url, Asked())
        assert_says(answer, door, "no model loaded")
        assert broken(answer, door)["message"] == "There is no such GPU."
        assert_nothing_left(running)
        engine.start_failure = None
        assert DOORS[door].text(DOORS[door].ask(running.http_url, Asked()))


# Forms


WRONG_FIELDS = [
    (REST, {"format": "docx"}, 400, "format"),
    (REST, {"return_timestamps": "perhaps"}, 400, "return_timestamps"),
    (REST, {"dtype": "int4"}, 400, "dtype"),
    (REST, {"url": "data:audio/wav;base64,AAAA"}, 400, "url"),
    (OPENAI, {"language": "Klingon"}, 400, "language"),
    (OPENAI, {"language": "fr"}, 400, "language"),
    (OPENAI, {"model": "whisper-9"}, 404, "model"),
    (OPENAI, {"response_format": "diarized_json"}, 400, "response_format"),
    (OPENAI, {"timestamp_granularities[]": "letter"}, 400, "timestamp_granularities"),
    (OPENAI, {"timestamp_granularities[]": "word"}, 400, "timestamp_granularities"),
    (OPENAI, {"stream": "true", "response_format": "srt"}, 400, "stream"),
]


@pytest.mark.parametrize(("door", "fields", "status", "param"), WRONG_FIELDS)
def test_wrong_fields(server: RunningServer, door: str, fields: dict[str, str], status: int, param: str) -> None:
    answer = post(server, door, **fields)
    assert answer.status_code == status
    error = broken(answer, door)
    assert param in error["message"] if door == REST else param == error["param"]
    if fields == {"language": "fr"}:
        assert error["message"] == "The model does not know the language fr; it knows en, zh."
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
    "another name": (MULTIPART, PART % (b'audio"; filename="talk.wav', b"x" * 1_100_000) + b"--cut--\r\n"),
    "breaks off": (MULTIPART, PART % (b"file", SPEECH)),
    "is no form": (MULTIPART, SPEECH),
    "not UTF-8": (MULTIPART, PART % (b"language", b"\xff") + b"--cut--\r\n"),
    "too many parts": (MULTIPART, 2000 * (PART % (b"x", b"y")) + b"--cut--\r\n"),
    "no JSON": ("application/json", b"{"),
    "deep JSON": ("application/json", b"[" * 100_000),
    "half a character": ("application/json", b'{"\\ud800": {}}'),
    "a list": ("application/json", b"[]"),
    "no address": ("application/json", b"{}"),
    "an object for a field": ("application/json", b'{"url": {}}'),
}


@pytest.mark.parametrize("door", FORMS)
@pytest.mark.parametrize("name", NO_FORMS)
def test_no_forms(server: RunningServer, door: str, name: str) -> None:
    kind, content = NO_FORMS[name]
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(server.http_url + door, content=content, headers=headers, trust_env=False, timeout=10)
    assert answer.status_code == 400
    broken(answer, door)
    assert_nothing_left(server)


HALF = "\ud800"
QUOTED = {
    CHAT: {"messages": [{"role": HALF, "content": "x"}]},
    COMPATIBLE: chat({"type": HALF}),
    DASHSCOPE: {"input": {"messages": [user("data:,x")]}, "parameters": {"result_format": HALF}},
}


@pytest.mark.parametrize("door", QUOTED)
def test_half_a_character_can_be_quoted(server: RunningServer, door: str) -> None:
    content, headers = json.dumps(QUOTED[door]), {"Content-Type": "application/json"}
    answer = httpx.post(server.http_url + door, content=content, headers=headers, trust_env=False, timeout=10)
    assert answer.status_code == 400
    assert "Invalid value: '?'." in broken(answer, door)["message"]


def test_a_field_may_not_fill_the_memory(server: RunningServer) -> None:
    answer = post(server, REST, context="a" * 1_100_000)
    assert answer.status_code == 413
    assert_nothing_left(server)


def test_unknown_addresses_below_v1_answer_in_openais_form(server: RunningServer) -> None:
    answer = get(server, "/v1/nothing")
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("door", FORMS)
def test_word_times_that_nobody_has(door: str) -> None:
    with running_server(engine=FakeEngine(word_times=False), vad=EnergyVad()) as running:
        fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word", "return_timestamps": "true"}
        answer = post(running, door, **fields)
    assert answer.status_code == 400
    assert "WORD_TIMES" in broken(answer, door)["message"]
