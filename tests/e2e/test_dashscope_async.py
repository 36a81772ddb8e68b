"""Files transcribed asynchronously: what tasks answer, how they fail, who sees them, and what outlives the server.

The engine names the loudness of what it hears. `tests/sdk/test_http_async.py` has DashScope's SDKs and real speech.
"""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwen3_asr_server.runtime import job_work
from support.doors import RATE, SILENCE, SPEECH, wav, wav_of
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import ChildServer, RunningServer, child_server, running_server, wait_until
from support.web_server import WebServer, ok, web_server

SUBMIT = "/api/v1/services/audio/asr/transcription"
ASYNC = {"X-DashScope-Async": "enable"}
MAX_BYTES = 200_000
MAX_S = 5
OVER = ("SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN")
DEADLINE_S = 60.0
CONVERSATION = Path(__file__).parents[1] / "data" / "speech" / "conversation.wav"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = {"max_upload_bytes": MAX_BYTES, "max_recording_s": MAX_S, "fetch_trusted_networks": "127.0.0.1"}
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with web_server() as serving:
        serving.answers["/speech.wav"] = ok(SPEECH)
        yield serving


class Client:
    """Asks one server as raw clients do."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def submit(self, *urls: str, model: str = "fun-asr", many: bool = True, **parameters: Any) -> httpx.Response:
        files = {"file_urls": list(urls)} if many else {"file_url": urls[0]}
        body = {"model": model, "input": files, "parameters": parameters}
        return await self.http.post(SUBMIT, json=body, headers=ASYNC)

    async def task(self, *urls: str, **options: Any) -> str:
        answer = await self.submit(*urls, **options)
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"]["task_status"] == "PENDING"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        return str(answer.json()["output"]["task_id"])

    async def poll(self, task: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/tasks/{task}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def until(self, task: str, *states: str) -> dict[str, Any]:
        """Return the answer to a poll as soon as the task is in one of these states."""
        end = time.monotonic() + DEADLINE_S
        while (body := await self.poll(task))["output"]["task_status"] not in states:
            assert time.monotonic() < end, body
            await asyncio.sleep(0.02)
        return body

    async def done(self, *urls: str, **options: Any) -> dict[str, Any]:
        return await self.until(await self.task(*urls, **options), *OVER)

    async def cancel(self, task: str) -> httpx.Response:
        return await self.http.post(f"/api/v1/tasks/{task}/cancel")


def client_of(server: RunningServer | ChildServer, key: str | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=server.http_url, headers=headers, trust_env=False, timeout=20)


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with client_of(server) as http:
        yield Client(http)


# What they answer


async def test_one_file(client: Client, web: WebServer) -> None:
    body = await client.done(web.url("/speech.wav"), many=False, model="qwen3-asr-flash-filetrans", enable_words=True)
    output = body["output"]
    assert (output["task_status"], body["usage"]) == ("SUCCEEDED", {"seconds": 4})
    assert output["submit_time"] <= output["scheduled_time"] <= output["end_time"]
    file = (await client.http.get(output["result"]["transcription_url"])).json()
    assert file["file_url"] == web.url("/speech.wav")
    assert file["audio_info"] == {"format": "wav", "sample_rate": RATE}
    (transcript,) = file["transcripts"]
    assert [sentence["sentence_id"] for sentence in transcript["sentences"]] == [0, 1]
    for sentence in transcript["sentences"]:
        assert [word["text"] for word in sentence["words"]] == sentence["text"].split()
        assert (sentence["language"], sentence["emotion"]) == ("en", "neutral")
        assert 0 <= sentence["begin_time"] < sentence["end_time"] <= 3780
    assert transcript["text"] == " ".join(sentence["text"] for sentence in transcript["sentences"])


async def test_many_files(client: Client, web: WebServer) -> None:
    body = await client.done(web.url("/speech.wav"), web.url("/missing"), web.url("/speech.wav"))
    output = body["output"]
    assert (output["task_status"], body["usage"]) == ("SUCCEEDED", {"duration": 8})
    assert output["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 2, "FAILED": 1}
    assert [result["subtask_status"] for result in output["results"]] == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    file = (await client.http.get(output["results"][2]["transcription_url"])).json()
    assert file["properties"] == {
        "audio_format": "pcm_s16le",
        "channels": [0],
        "original_sampling_rate": RATE,
        "original_duration_in_milliseconds": 3780,
    }
    (transcript,) = file["transcripts"]
    assert [sentence["sentence_id"] for sentence in transcript["sentences"]] == [1, 2]
    assert all(sentence["words"] for sentence in transcript["sentences"])


@pytest.mark.parametrize("channels", [None, [0]])
@pytest.mark.parametrize("many", [True, False])
async def test_a_file_that_breaks_off(client: Client, web: WebServer, many: bool, channels: list[int] | None) -> None:
    for file, told in ((SPEECH, None), (SPEECH[: len(SPEECH) // 2], True)):
        web.answers["/talk.wav"] = ok(file)
        output = (await client.done(web.url("/talk.wav"), many=many, channel_id=channels))["output"]
        (result,) = output["results"] if many else [output["result"]]
        answer = await client.http.get(result["transcription_url"])
        assert answer.json().get("audio_truncated") == told
        assert answer.headers.get("X-Audio-Truncated") == (told and "true")


async def test_channels_kept_apart(client: Client, web: WebServer) -> None:
    samples = np.zeros((3 * RATE, 2), np.float32)
    samples[: RATE // 2, 0] = 0.25
    samples[2 * RATE : 2 * RATE + RATE // 2, 1] = 0.5
    web.answers["/call.wav"] = ok(wav_of(samples))
    found = {}
    for channels in (None, [0], [1], [0, 1], [1, 7]):
        body = await client.done(web.url("/call.wav"), channel_id=channels)
        file = (await client.http.get(body["output"]["results"][0]["transcription_url"])).json()
        assert file["properties"]["channels"] == [0, 1]
        found[str(channels)] = {each["channel_id"]: each["text"] for each in file["transcripts"]}
    left, right = found["[0]"][0], found["[1]"][1]
    assert left != right
    assert found["[0, 1]"] == {0: left, 1: right}
    assert found["[1, 7]"] == {1: right}
    assert len(found["None"][0].split()) == len(left.split()) + len(right.split())
    body = await client.done(web.url("/call.wav"), channel_id=[7])
    assert body["output"]["results"][0]["code"] == "InvalidParameter"


async def test_addresses_are_those_that_the_client_uses(client: Client, web: WebServer) -> None:
    task = await client.task(web.url("/speech.wav"), many=False)
    await client.until(task, *OVER)
    headers = {"Host": "asr.example.com", "X-Forwarded-Proto": "https"}
    output = (await client.http.get(f"/api/v1/tasks/{task}", headers=headers)).json()["output"]
    assert output["result"]["transcription_url"].startswith("https://asr.example.com/api/v1/results/")


async def test_what_was_said_beforehand_reaches_the_engine(web: WebServer) -> None:
    engine = FakeEngine()
    with running_server({"fetch_trusted_networks": "127.0.0.1"}, engine=engine, vad=EnergyVad()) as running:
        async with client_of(running) as http:
            await Client(http).done(web.url("/speech.wav"), language_hints=["zh"], corpus={"text": "Wu Tang"})
    assert {(options.language, options.context) for options in engine.opened} == {("zh", "Wu Tang")}


async def test_lists(client: Client, web: WebServer) -> None:
    tasks = [await client.task(web.url("/speech.wav"), model="paraformer-v2") for _ in range(3)]
    for task in tasks:
        await client.until(task, *OVER)
    query = {"model_name": "paraformer-v2", "page_size": 2, "status": "SUCCEEDED", "start_time": "20200101000000"}
    listed = (await client.http.get("/api/v1/tasks", params=query)).json()
    assert (listed["total"], listed["total_page"], listed["page_no"], listed["page_size"]) == (3, 2, 1, 2)
    assert [task["task_id"] for task in listed["tasks"]] == [tasks[2], tasks[1]]
    assert {"task_status", "submit_time", "end_time", "model_name"} <= set(listed["tasks"][0])
    listed = (await client.http.get("/api/v1/tasks", params={"end_time": "20200101000000"})).json()
    assert (listed["total"], listed["tasks"]) == (0, [])


# How they fail

FAILURES: dict[str, tuple[str, bytes | None, str]] = {
    "nothing there": ("/missing", None, "FILE_404_NOT_FOUND"),
    "forbidden": ("/secret", b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "FILE_403_FORBIDDEN"),
    "a server with trouble": ("/trouble", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "FILE_DOWNLOAD_FAILED"),
    "breaks off": ("/broken", ok(SPEECH)[:5000], "FILE_DOWNLOAD_FAILED"),
    "a refused address": ("http://169.254.169.254/", None, "FILE_DOWNLOAD_FAILED"),
    "a path on the server": ("/etc/passwd", None, "FILE_DOWNLOAD_FAILED"),
    "an upload that never was": ("oss://0123456789abcdef0123456789abcdef/a.wav", None, "FILE_404_NOT_FOUND"),
    "too large": ("/large", ok(bytes(MAX_BYTES + 1)), "FILE_TOO_LARGE"),
    "too long": ("/long", ok(wav((0.25, MAX_S + 1.2))), "AUDIO_DURATION_TOO_LONG"),
    "empty": ("/empty", ok(b""), "DECODE_ERROR"),
    "no audio": ("/text", ok(b"This is no audio. " * 100), "DECODE_ERROR"),
    "silent": ("/silent", ok(SILENCE), "SUCCESS_WITH_NO_VALID_FRAGMENT"),
}


async def test_failures(client: Client, web: WebServer) -> None:
    """All at once, as one job, and the first also as a job of its own."""
    urls = []
    for name, (place, answer, _) in FAILURES.items():
        if answer is not None:
            web.answers[place] = answer
        elsewhere = not place.startswith("/") or name == "a path on the server"
        urls.append(place if elsewhere else web.url(place))
    body = await client.done(*urls)
    assert (body["output"]["task_status"], body["output"]["code"]) == ("FAILED", "FILE_404_NOT_FOUND")
    told = dict(zip(FAILURES, body["output"]["results"], strict=True))
    assert {name: result["code"] for name, result in told.items()} == {name: row[2] for name, row in FAILURES.items()}
    assert all(result["message"] and result["subtask_status"] == "FAILED" for result in told.values())
    assert "usage" not in body
    one = (await client.done(urls[0], many=False))["output"]
    assert (one["task_status"], one["code"]) == ("FAILED", "FILE_404_NOT_FOUND")
    assert one["message"]
    assert "result" not in one


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({}, b"{}", 403, "AccessDenied"),
        (ASYNC, b"{", 400, "InvalidParameter"),
        (ASYNC, b"[]", 400, "InvalidParameter"),
        (ASYNC, b"{}", 400, "InvalidParameter"),
        (ASYNC, b'{"model": "fun-asr", "input": {}}', 400, "InvalidParameter"),
        (ASYNC, b'{"model": "gpt-4o", "input": {"file_url": "http://a/b"}}', 404, "Model.NotExist"),
        (ASYNC, b" " * 1_100_000, 413, "BadRequest.TooLarge"),
    ],
)
async def test_wrong_requests(client: Client, headers: dict[str, str], content: bytes, status: int, code: str) -> None:
    answer = await client.http.post(SUBMIT, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"code", "message", "request_id"}


async def test_a_request_that_stops_is_ended(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    state = server.server.state
    monkeypatch.setattr(state, "source_limits", replace(state.source_limits, upload_stall_s=0.1))
    host, _, port = server.http_url.removeprefix("http://").partition(":")
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            head = [f"POST {SUBMIT} HTTP/1.1", f"Host: {host}", "X-DashScope-Async: enable", "Content-Length: 100"]
            writer.write("\r\n".join([*head, "", '{"model": ']).encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
            assert b'"code":"RequestTimeOut"' in await reader.readuntil(b"}")


@pytest.mark.parametrize(
    "query", [{"status": "LOST"}, {"start_time": "yesterday"}, {"page_no": "0"}, {"page_size": "1000"}]
)
async def test_wrong_queries(client: Client, query: dict[str, str]) -> None:
    answer = await client.http.get("/api/v1/tasks", params=query)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")


async def test_what_there_is_not(client: Client) -> None:
    assert (await client.poll("no-such-task"))["output"] == {"task_id": "no-such-task", "task_status": "UNKNOWN"}
    answer = await client.cancel("no-such-task")
    assert (answer.status_code, answer.json()["code"]) == (400, "UnsupportedOperation")
    for name in ("no-such-result", "..%2f..%2fjobs.sqlite", "a" * 43):
        assert (await client.http.get(f"/api/v1/results/{name}.json")).status_code == 404


async def test_a_full_queue(web: WebServer) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    settings = {"fetch_trusted_networks": "127.0.0.1", "max_job_files": 2, "max_recordings": 2}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        async with client_of(running) as http:
            client = Client(http)
            first = await client.task(web.url("/speech.wav"))
            second = await client.task(web.url("/speech.wav"))
            answer = await client.submit(web.url("/speech.wav"))
            assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.AllocationQuota")
            assert int(answer.headers["retry-after"]) > 0
            await client.until(first, "RUNNING")
            assert (await client.poll(second))["output"]["queue_position"] == 1
            assert (await http.get("/health")).json()["jobs"] == {"waiting": 1, "running": 1, "problem": None}


@pytest.mark.parametrize(("keys", "taken_in"), [("sk-a,sk-b", 2), ("sk-a", 4)])
async def test_one_key_does_not_fill_the_queue(web: WebServer, keys: str, taken_in: int) -> None:
    engine = FakeEngine(gate=asyncio.Event())
    settings = {"fetch_trusted_networks": "127.0.0.1", "max_job_files": 4, "api_keys": keys}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        statuses = []
        for key in keys.split(","):
            async with client_of(running, key) as http:
                for _ in range(5):
                    answer = await Client(http).submit(web.url("/speech.wav"))
                    statuses.append(answer.status_code)
                assert answer.json()["code"] == "Throttling.AllocationQuota"
        assert statuses == ([200] * taken_in + [429] * (5 - taken_in)) * len(keys.split(","))


async def test_a_full_server_is_waited_for(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_work, "FULL_AGAIN_S", 0.05)
    engine = FakeEngine()
    settings = {"fetch_trusted_networks": "127.0.0.1", "max_recordings": 1}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        async with client_of(running) as http:
            client = Client(http)
            with running.services.recordings.admit():
                task = await client.task(web.url("/speech.wav"))
                await client.until(task, "RUNNING")
                await asyncio.to_thread(wait_until, lambda: _refused(running) > 1)
                assert not engine.opened
            assert (await client.until(task, *OVER))["output"]["task_status"] == "SUCCEEDED"
    assert len(web.requests) == 1


def _refused(server: RunningServer) -> float:
    found = server.services.metrics.registry.get_sample_value("asr_sessions_refused_total", {"reason": "sessions"})
    return found or 0.0


# Cancelling


async def test_cancelling(web: WebServer) -> None:
    """One that is worked on and one that waits; then nothing of the first is left."""
    engine = FakeEngine(gate=asyncio.Event())
    settings = {"fetch_trusted_networks": "127.0.0.1", "max_recordings": 2}
    with running_server(settings, engine=engine, vad=EnergyVad()) as running:
        async with client_of(running) as http:
            client = Client(http)
            first, second = [await client.task(web.url("/speech.wav")) for _ in range(2)]
            await client.until(first, "RUNNING")
            await asyncio.to_thread(wait_until, lambda: bool(engine.steps))
            assert (await client.poll(first))["output"]["progress"]["total_seconds"] == 3.78
            for task in (second, first):
                assert (await client.cancel(task)).status_code == 200
                output = (await client.poll(task))["output"]
                assert (output["task_status"], "end_time" in output) == ("CANCELED", True)
                assert (await client.cancel(task)).status_code == 400
            await asyncio.to_thread(
                wait_until, lambda: not len(running.services.recordings) and not engine.open_streams
            )
            assert running.services.pool.leases.count == 0


# Who sees them


async def test_only_the_key_that_submitted_sees_a_task(web: WebServer) -> None:
    settings = {"fetch_trusted_networks": "127.0.0.1", "api_keys": "sk-one,sk-two"}
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as running:
        async with client_of(running, "sk-one") as one, client_of(running, "sk-two") as two, client_of(running) as none:
            body = await Client(one).done(web.url("/speech.wav"), many=False)
            task = body["output"]["task_id"]
            assert (await Client(two).poll(task))["output"]["task_status"] == "UNKNOWN"
            assert (await Client(two).cancel(task)).status_code == 400
            assert (await two.get("/api/v1/tasks")).json()["total"] == 0
            assert (await one.get("/api/v1/tasks")).json()["total"] == 1
            assert (await none.get(f"/api/v1/tasks/{task}")).status_code == 401
            assert (await Client(none).submit(web.url("/speech.wav"))).status_code == 401
            result = await none.get(body["output"]["result"]["transcription_url"])
            assert result.status_code == 200
            assert result.headers["cache-control"] == "private, no-store"


# What outlives the server


async def test_a_second_server_on_the_same_folder_says_so(tmp_path: Path, web: WebServer) -> None:
    settings = {"data_dir": str(tmp_path)}
    with (
        running_server(settings, engine=FakeEngine(), vad=EnergyVad()),
        running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as second,
    ):
        async with client_of(second) as http:
            answer = await Client(http).submit(web.url("/speech.wav"))
            assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
            assert "DATA_DIR" in answer.json()["message"]
            assert "DATA_DIR" in (await http.get("/health")).json()["jobs"]["problem"]


async def test_a_model_that_the_next_server_has_not(tmp_path: Path, web: WebServer) -> None:
    settings = {"data_dir": str(tmp_path), "fetch_trusted_networks": "127.0.0.1"}
    with running_server(settings, engine=FakeEngine(gate=asyncio.Event()), vad=EnergyVad()) as first:
        async with client_of(first) as http:
            task = await Client(http).task(web.url("/speech.wav"))
    with closing(sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite")) as database, database:
        database.execute("""UPDATE job SET wish = replace(wish, '"model": "none"', '"model": "former"')""")
    with running_server(settings, engine=FakeEngine(), vad=EnergyVad()) as second:
        async with client_of(second) as http:
            output = (await Client(http).until(task, *OVER))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "InvalidParameter")
    assert "model" in output["message"]


@pytest.mark.parametrize(
    ("number", "left_as"), [(signal.SIGKILL, "RUNNING"), (signal.SIGTERM, "PENDING")], ids=["killed", "stopped"]
)
async def test_a_job_in_the_middle_is_done_by_the_next_server(tmp_path: Path, number: int, left_as: str) -> None:
    environment = {
        "ENGINE": "pocketsphinx",
        "POCKETSPHINX_DECODERS": "2",
        "DECODE_TIMEOUT_S": "30",
        "DATA_DIR": str(tmp_path / "data"),
        "RECORDING_FOLDERS": str(CONVERSATION.parent),
    }
    with child_server(environment) as child:
        async with client_of(child) as http:
            client = Client(http)
            task = await client.task(str(CONVERSATION), many=False)
            await client.until(task, "RUNNING")
        began = time.monotonic()
        child.stop(signal.Signals(number))
        stopped_s = time.monotonic() - began
    assert stopped_s < 10
    with closing(sqlite3.connect(tmp_path / "data" / "jobs" / "jobs.sqlite")) as database:
        assert database.execute("SELECT state FROM file").fetchall() == [(left_as,)]
    with child_server(environment) as child:
        async with client_of(child) as http:
            output = (await Client(http).until(task, *OVER))["output"]
            file = (await http.get(output["result"]["transcription_url"])).json()
    assert len(file["transcripts"][0]["text"].split()) > 20
