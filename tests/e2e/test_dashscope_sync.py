"""DashScope's synchronous call on the wire, and the uploads before it. `tests/sdk/test_http_sync.py` has the SDKs,
`test_recording_errors.py` what may go wrong at every door. The engine names the loudness of what it hears.
"""

import asyncio
import base64
import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3_asr_server.domain import StreamOptions
from qwen3_asr_server.errors import EngineError
from qwen3_asr_server.frontends._upload_policy import POLICY_TTL_S, UploadPolicies
from support.doors import (
    DASHSCOPE,
    SEGMENTS,
    SILENCE,
    SPEECH,
    assert_nothing_left,
    broken,
    dashscope_call,
    dashscope_frames,
    data_url,
    user,
    wav,
)
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine, FakeStream
from support.server import RunningServer, running_server, wait_until

UPLOADS = "/api/v1/uploads"
AUDIO = user(data_url(SPEECH))
KEY = "sk-right"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = {"max_upload_bytes": 400_000, "sync_max_bytes": 300_000, "sync_max_s": 6, "max_stored_bytes": 10**6}
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


@pytest.fixture(scope="module")
def text(server: RunningServer) -> str:
    """Return what the engine makes of the recording."""
    answer = httpx.post(f"{server.http_url}/api/transcribe", files={"file": SPEECH}, trust_env=False)
    return str(answer.json()["text"])


def stored(server: RunningServer) -> list[Path]:
    folder = server.server.state.stored.folder.path
    return [path for path in folder.rglob("*") if path.is_file()]


# Answers


def test_an_answer_as_the_vendor_documents_it(server: RunningServer, text: str) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], result_format="message")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("request_id") == answer.headers["x-request-id"]
    info = {"type": "audio_info", "language": "en", "emotion": "neutral"}
    message = {"role": "assistant", "content": [{"text": text}], "annotations": [info]}
    assert body == {
        "output": {"choices": [{"finish_reason": "stop", "message": message}]},
        "usage": {
            "input_tokens_details": {"text_tokens": 0},
            "output_tokens_details": {"text_tokens": len(text.split())},
            "seconds": 4,
        },
    }
    assert_nothing_left(server)
    assert not stored(server)


def test_events_as_the_vendor_writes_them(server: RunningServer, text: str) -> None:
    frames = dashscope_frames(dashscope_call(server.http_url, [AUDIO], events=True))
    assert [lines for lines, _ in frames] == [
        [f"id:{number}", "event:result", ":HTTP_STATUS/200"] for number in range(1, SEGMENTS + 2)
    ]
    choices = [data["output"]["choices"][0] for _, data in frames]
    assert [choice["finish_reason"] for choice in choices] == ["null"] * SEGMENTS + ["stop"]
    texts = [choice["message"]["content"][0]["text"] for choice in choices]
    assert texts[-1] == text
    for shorter, longer in itertools.pairwise(texts):
        assert shorter
        assert longer.startswith(shorter)
    assert len({data["request_id"] for _, data in frames}) == 1
    seconds = [data["usage"]["seconds"] for _, data in frames]
    assert seconds == sorted(seconds)
    assert seconds[-1] == 4


def test_events_with_only_what_is_new(server: RunningServer, text: str) -> None:
    frames = dashscope_frames(dashscope_call(server.http_url, [AUDIO], events=True, incremental_output=True))
    texts = [data["output"]["choices"][0]["message"]["content"][0]["text"] for _, data in frames]
    assert "".join(texts) == text
    assert all(texts[:SEGMENTS])


@pytest.mark.parametrize("events", [False, True])
def test_the_result_as_text(server: RunningServer, text: str, events: bool) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], events=events, result_format="text")
    body = dashscope_frames(answer)[-1][1] if events else answer.json()
    assert body["output"] == {"text": text, "finish_reason": "stop"}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json, text/event-stream"])
def test_events_may_be_asked_for_by_accept(server: RunningServer, accept: str) -> None:
    body = {"model": "qwen3-asr-flash", "input": {"messages": [AUDIO]}}
    answer = httpx.post(server.http_url + DASHSCOPE, json=body, headers={"Accept": accept}, trust_env=False)
    assert len(dashscope_frames(answer)) == SEGMENTS + 1


@pytest.mark.parametrize("events", [False, True])
def test_silence_is_an_empty_text(server: RunningServer, events: bool) -> None:
    answer = dashscope_call(server.http_url, [user(data_url(SILENCE))], events=events)
    (choice,) = (dashscope_frames(answer)[0][1] if events else answer.json())["output"]["choices"]
    assert choice["message"]["content"] == [{"text": ""}]
    assert choice["message"]["annotations"] == [{"type": "audio_info", "emotion": "neutral"}]


@pytest.mark.parametrize(
    "model",
    [None, "", "none", "qwen3-asr-flash", "Qwen3-ASR-Flash", "qwen3-asr-flash-2025-09-08", "qwen3-asr-flash-us"],
)
def test_models_that_clients_may_name(server: RunningServer, text: str, model: str | None) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], model=model)
    assert answer.json()["output"]["choices"][0]["message"]["content"][0]["text"] == text


@pytest.mark.parametrize(("language", "named"), [("zh", "zh"), ("Chinese", "zh"), ("auto", "en"), ("", "en")])
def test_languages(server: RunningServer, language: str, named: str) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], asr_options={"language": language})
    assert answer.json()["output"]["choices"][0]["message"]["annotations"][0]["language"] == named


@pytest.mark.parametrize(
    ("messages", "options", "context"),
    [
        ([{"role": "system", "content": [{"text": "Wu Tang"}]}, AUDIO], {}, "Wu Tang"),
        ([{"role": "system", "content": "Wu Tang"}, AUDIO], {}, "Wu Tang"),
        ([{"role": "system", "content": [{"text": "Wu"}, {"text": "Tang"}]}, AUDIO], {}, "Wu\nTang"),
        ([{"role": "system", "content": [{"text": ""}]}, AUDIO], {}, ""),
        ([AUDIO, {"role": "user", "content": [{"text": "What is said?"}]}], {}, ""),
        ([AUDIO], {"custom_vocabulary_word": [{"word": "Wu", "sounds_like": ["woo"]}]}, "Wu (woo)"),
        ([AUDIO], {"vocabulary": [{"text": "Wu", "weight": 4}]}, "Wu"),
        ([AUDIO], {"corpus": {"text": "Wu Tang"}}, "Wu Tang"),
    ],
)
def test_what_is_said_beforehand_reaches_the_engine(messages: Any, options: dict[str, Any], context: str) -> None:
    engine = FakeEngine()
    with running_server(engine=engine, vad=EnergyVad()) as running:
        answer = dashscope_call(running.http_url, messages, asr_options=options)
    assert engine.opened[0].context == context
    assert (answer.json()["usage"]["input_tokens_details"]["text_tokens"] > 0) == bool(context)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"asr_options": {"enable_itn": True, "enable_lid": True}}, {"temperature": 0.1, "stream": True, "top_p": 0.5}],
)
def test_fields_without_effect(server: RunningServer, text: str, parameters: dict[str, Any]) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], **parameters)
    assert answer.json()["output"]["choices"][0]["message"]["content"][0]["text"] == text


def test_no_emotion_on_request() -> None:
    with running_server({"emotion": ""}, engine=FakeEngine(), vad=EnergyVad()) as running:
        answer = dashscope_call(running.http_url, [AUDIO])
    annotations = answer.json()["output"]["choices"][0]["message"]["annotations"]
    assert annotations == [{"type": "audio_info", "language": "en"}]


# What is wrong


WRONG = {
    "no input": ({"model": "qwen3-asr-flash"}, "InvalidParameter"),
    "no messages": ({"input": {}}, "InvalidParameter"),
    "messages no list": ({"input": {"messages": {}}}, "InvalidParameter"),
    "an empty list": ({"input": {"messages": []}}, "InvalidParameter"),
    "a message no object": ({"input": {"messages": ["audio"]}}, "InvalidParameter"),
    "content no list": ({"input": {"messages": [{"role": "user", "content": 5}]}}, "InvalidParameter"),
    "a part no object": ({"input": {"messages": [{"role": "user", "content": ["a"]}]}}, "InvalidParameter"),
    "audio no string": ({"input": {"messages": [user(5)]}}, "InvalidParameter"),  # type: ignore[arg-type]
    "two recordings": ({"input": {"messages": [AUDIO, AUDIO]}}, "InvalidParameter"),
    "only in a system message": ({"input": {"messages": [{**AUDIO, "role": "system"}]}}, "InvalidParameter"),
    "too many messages": ({"input": {"messages": [AUDIO, *[{"content": []}] * 1200]}}, "InvalidParameter"),
    "too many parts": (
        {"input": {"messages": [AUDIO, {"role": "system", "content": [{}] * 1200}]}},
        "InvalidParameter",
    ),
    "no object": ({"input": [], "parameters": 1}, "InvalidParameter"),
    "another format": (
        {"input": {"messages": [AUDIO]}, "parameters": {"result_format": "xml"}},
        "InvalidParameter",
    ),
    "a flag no flag": (
        {"input": {"messages": [AUDIO]}, "parameters": {"incremental_output": "yes"}},
        "InvalidParameter",
    ),
    "a language no string": (
        {"input": {"messages": [AUDIO]}, "parameters": {"asr_options": {"language": ["en"]}}},
        "InvalidParameter",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_requests(server: RunningServer, wrong: str) -> None:
    body, code = WRONG[wrong]
    answer = httpx.post(server.http_url + DASHSCOPE, json=body, trust_env=False)
    error = broken(answer, DASHSCOPE)
    assert (answer.status_code < 500, error["code"]) == (True, code)
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000])
def test_no_json(server: RunningServer, content: bytes) -> None:
    answer = httpx.post(server.http_url + DASHSCOPE, content=content, trust_env=False)
    assert (answer.status_code, broken(answer, DASHSCOPE)["code"]) == (400, "InvalidParameter")


def test_the_message_names_the_field(server: RunningServer) -> None:
    answer = dashscope_call(server.http_url, [AUDIO], asr_options={"language": "Klingon"})
    assert broken(answer, DASHSCOPE)["message"].startswith("parameters.asr_options.language: ")


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize(
    ("recording", "status", "code"),
    [
        (wav((0.0, 1.0), (0.25, 6.0)), 400, "InvalidParameter"),
        (wav((0.0, 9.5)), 413, "BadRequest.TooLarge"),
    ],
)
def test_the_vendors_limits_hold_at_this_door_only(
    server: RunningServer, recording: bytes, status: int, code: str, events: bool
) -> None:
    answer = dashscope_call(server.http_url, [user(data_url(recording))], events=events)
    assert answer.status_code == status
    error = dashscope_frames(answer)[0][1] if events else answer.json()
    assert error["code"] == code
    elsewhere = httpx.post(f"{server.http_url}/api/transcribe", files={"file": recording}, trust_env=False)
    assert elsewhere.status_code == 200
    assert_nothing_left(server)


class Fatal(EngineError):
    """An error that trying again does not mend."""

    retryable = False


class FailsLater(FakeEngine):
    """Cannot recognise any piece but the first."""

    def open_stream(self, options: StreamOptions) -> FakeStream:
        if self.opened:
            self.failures.append(Fatal("This piece cannot be recognised."))
        return super().open_stream(options)


def test_a_failure_on_the_way_is_the_last_event() -> None:
    recording = wav((0.25, 0.64), (0.0, 60.0), (0.25, 0.64))
    with running_server(engine=FailsLater(), vad=EnergyVad()) as running:
        answer = dashscope_call(running.http_url, [user(data_url(recording))], events=True)
        assert_nothing_left(running)
    frames = dashscope_frames(answer)
    assert answer.status_code == 200
    assert [lines[1] for lines, _ in frames] == ["event:result", "event:error"]
    assert frames[1][0] == ["id:2", "event:error", ":HTTP_STATUS/503", "status:503"]
    assert frames[1][1]["code"] == "ModelUnavailable"
    assert frames[1][1]["request_id"] == frames[0][1]["request_id"]


@pytest.mark.parametrize("events", [False, True])
def test_a_client_that_leaves_ends_the_work(events: bool) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    with running_server(engine=engine, vad=EnergyVad()) as running:
        with connected(running) as client:
            head = "X-DashScope-SSE: enable\r\n" if events else ""
            body = json.dumps({"input": {"messages": [AUDIO]}}).encode()
            client.sendall(
                f"POST {DASHSCOPE} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            )
            wait_until(lambda: bool(engine.steps))
        assert_nothing_left(running)
        wait_until(lambda: engine.open_streams == 0)


def connected(server: RunningServer) -> socket.socket:
    host, _, port = server.http_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


# Uploads


def policy_of(server: RunningServer, **headers: str) -> dict[str, Any]:
    answer = httpx.get(
        f"{server.http_url}{UPLOADS}?action=getPolicy&model=qwen3-asr-flash", headers=headers, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == answer.json()["output"]
    return dict(answer.json()["output"])


def send(leave: dict[str, Any], file: bytes = SPEECH, name: str = "talk.wav", /, **fields: str) -> httpx.Response:
    given = {
        "OSSAccessKeyId": leave["oss_access_key_id"],
        "Signature": leave["signature"],
        "policy": leave["policy"],
        "key": f"{leave['upload_dir']}/{name}",
        "success_action_status": "200",
    }
    return httpx.post(
        leave["upload_host"], data={**given, **fields}, files={"file": (name, file)}, trust_env=False, timeout=20
    )


@pytest.fixture
def keyed() -> Iterator[RunningServer]:
    with running_server({"api_keys": KEY}, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


def test_a_file_is_sent_without_the_key_and_read_with_it(keyed: RunningServer, text: str) -> None:
    refused = httpx.get(f"{keyed.http_url}{UPLOADS}?action=getPolicy", trust_env=False)
    assert (refused.status_code, refused.json()["code"]) == (401, "InvalidApiKey")
    policy = policy_of(keyed, Authorization=f"Bearer {KEY}")
    assert send(policy).status_code == 200
    url = f"oss://{policy['upload_dir']}/talk.wav"
    assert dashscope_call(keyed.http_url, [user(url)]).status_code == 401
    answer = dashscope_call(keyed.http_url, [user(url)], key=KEY)
    assert answer.json()["output"]["choices"][0]["message"]["content"][0]["text"] == text
    (file,) = stored(keyed)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes() == SPEECH
    assert_nothing_left(keyed)


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": ""},
        {"Signature": ""},
        {"Signature": "0" * 64},
        {"Signature": "ü"},
        {"policy": base64.urlsafe_b64encode(b'{"folder": "x", "max_bytes": 9, "expires": 9e99}').decode()},
    ],
)
def test_nothing_is_stored_without_leave(keyed: RunningServer, fields: dict[str, str]) -> None:
    policy = policy_of(keyed, Authorization=f"Bearer {KEY}")
    answer = send(policy, **fields)
    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
    assert not stored(keyed)


@pytest.mark.parametrize(
    "key", ["", "talk.wav", "{other}/talk.wav", "{dir}/", "{dir}/../talk.wav", "{dir}/a/b.wav", "../{dir}/talk.wav"]
)
def test_leave_is_for_one_folder(server: RunningServer, key: str) -> None:
    policy = policy_of(server)
    answer = send(policy, key=key.format(dir=policy["upload_dir"], other=policy_of(server)["upload_dir"]))
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert not stored(server)


def test_leave_is_for_minutes(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(server.server.state, "upload_policies", UploadPolicies(lambda: now[0]))
    policy = policy_of(server)
    now[0] += POLICY_TTL_S
    answer = send(policy)
    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")


def test_the_fields_stand_before_the_file(server: RunningServer) -> None:
    policy = policy_of(server)
    part = b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    fields = [("policy", policy["policy"]), ("Signature", policy["signature"]), ("key", policy["upload_dir"] + "/a")]
    content = part % (b"file", bytes(390_000))
    content += b"".join(part % (name.encode(), value.encode()) for name, value in fields) + b"--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    answer = httpx.post(server.http_url + UPLOADS, content=content, headers=headers, trust_env=False)
    assert answer.status_code == 403
    assert not stored(server)


@pytest.mark.parametrize("content", [b"", b"file", b'--cut\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=cut", "multipart/form-data", "application/json"])
def test_no_form(server: RunningServer, kind: str, content: bytes) -> None:
    answer = httpx.post(server.http_url + UPLOADS, content=content, headers={"Content-Type": kind}, trust_env=False)
    assert answer.status_code in (400, 403)
    assert not stored(server)


def test_one_file_is_bounded(server: RunningServer) -> None:
    answer = send(policy_of(server), bytes(400_001))
    assert (answer.status_code, answer.json()["code"]) == (413, "BadRequest.TooLarge")
    assert not stored(server)


def test_all_files_together_are_bounded() -> None:
    with running_server({"max_stored_bytes": 200_000}, engine=FakeEngine(), vad=EnergyVad()) as running:
        policy = policy_of(running)
        assert send(policy, SPEECH, "first").status_code == 200
        full = send(policy, SPEECH, "second")
        assert (full.status_code, full.json()["code"]) == (503, "Throttling")
        assert int(full.headers["retry-after"]) > 0
        assert len(stored(running)) == 1
        assert send(policy, bytes(40_000), "third").status_code == 200
        assert not [path for path in stored(running) if path.name.startswith(".part")]


def test_an_upload_that_breaks_off_leaves_nothing(server: RunningServer) -> None:
    policy = policy_of(server)
    fields = {name: policy[name.lower()] for name in ("policy", "Signature")}
    fields["key"] = f"{policy['upload_dir']}/talk.wav"
    request = httpx.Request("POST", policy["upload_host"], data=fields, files={"file": SPEECH})
    head = [f"POST {UPLOADS} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
    with connected(server) as client:
        client.sendall("\r\n".join(head).encode() + request.read()[:80_000])
        wait_until(lambda: bool(stored(server)))
    wait_until(lambda: not stored(server))
    assert_nothing_left(server)


def test_an_upload_that_stops_is_ended(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    state = server.server.state
    monkeypatch.setattr(state, "source_limits", replace(state.source_limits, upload_stall_s=0.1))
    request = httpx.Request("POST", server.http_url + UPLOADS, files={"file": SPEECH})
    head = [f"POST {UPLOADS} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
    with connected(server) as client:
        client.sendall("\r\n".join(head).encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("key", ["{dir}/other.wav", "{dir}", "{dir}/../uploads", "../../etc/passwd", "x/talk.wav"])
def test_only_what_was_sent_is_found(server: RunningServer, key: str) -> None:
    policy = policy_of(server)
    answer = dashscope_call(server.http_url, [user(f"oss://{key.format(dir=policy['upload_dir'])}")])
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter.DataInspection")
    assert "upload" in answer.json()["message"] or "file" in answer.json()["message"]


def test_every_door_reads_uploads(keyed: RunningServer, text: str) -> None:
    policy = policy_of(keyed, Authorization=f"Bearer {KEY}")
    assert send(policy, SPEECH, "über.wav").status_code == 200
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"oss://{policy['upload_dir']}/über.wav"
    answer = httpx.post(f"{keyed.http_url}/api/transcribe", json={"url": url}, headers=headers, trust_env=False)
    assert answer.json()["text"] == text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "http://{address}/api/v1/uploads"),
        ({"Host": "asr.example.com"}, "http://asr.example.com/api/v1/uploads"),
        ({"Host": "asr.example.com", "X-Forwarded-Proto": "https"}, "https://asr.example.com/api/v1/uploads"),
    ],
)
def test_files_are_sent_the_way_the_client_came(server: RunningServer, headers: dict[str, str], expected: str) -> None:
    address = server.http_url.removeprefix("http://")
    assert policy_of(server, **headers)["upload_host"] == expected.format(address=address)


def test_another_action(server: RunningServer) -> None:
    answer = httpx.get(f"{server.http_url}{UPLOADS}?action=delete", trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
