"""The second generation of the SDK, `Client.audio.asr.recognize`: tasks, also one after the other on one connection."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope.v2.errors import BadRequestError, DashScopeError, NotFoundError
from dashscope.v2.resources.audio.asr import Recognition, RecognitionResult

from support import speech
from support.process import ServerProcess
from support.recognition_sdk import (
    CONTEXT,
    MODEL,
    PACKET_BYTES,
    TWO_SENTENCES,
    Sentence,
    assert_sentences,
    text_of,
)
from support.recorded_sdk import PROMPTS, SAMPLES, wav

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.filterwarnings("ignore:dashscope 2.0 audio API is a preview:FutureWarning"),
    pytest.mark.filterwarnings("ignore:no workspace configured:UserWarning"),  # about an address that is not used
]

TIMEOUT_S = 10.0
RUNS = 5
CLIP = speech.clip(PROMPTS[0])
EXAMPLE = "dashscope.examples.01_atomic_capabilities.audio.connection_reuse"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        environment.setenv("DASHSCOPE_WEBSOCKET_BASE_URL", server.inference_url)
        with dashscope.Client(api_key="sk-test", timeout=TIMEOUT_S) as client:
            yield client


def hear(recognition: Recognition, pcm: bytes) -> list[RecognitionResult]:
    """Speak in one thread and listen in another."""

    def speak() -> None:
        for start in range(0, len(pcm), PACKET_BYTES):
            recognition.send_audio_frame(pcm[start : start + PACKET_BYTES])
        recognition.stop()

    with ThreadPoolExecutor() as threads:
        speaking = threads.submit(speak)
        results = list(recognition.results())
        speaking.result()
    return results


def finals_of(results: list[RecognitionResult]) -> list[Sentence]:
    return [sentence for result in results if result.is_sentence_end() and (sentence := result.get_sentence())]


def test_results(client: Any) -> None:
    with client.audio.asr.recognize(model=MODEL, parameters=TWO_SENTENCES) as recognition:
        results = hear(recognition, speech.pcm16(SAMPLES))
        assert recognition.last_response["header"]["event"] == "task-finished"
        assert recognition.last_response["header"]["task_id"] == recognition.session.task_id
        assert recognition.first_package_delay > 0
    finals = finals_of(results)
    assert_sentences(finals)
    assert len(finals) == len(PROMPTS)
    assert [result.get_usage() is not None for result in results] == [result.is_sentence_end() for result in results]
    assert recognition.usage == {"duration": -(-finals[-1]["end_time"] // 1000)}


def test_a_file_is_told_event_by_event(client: Any, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav())
    events = list(client.audio.asr.recognize_file(str(tmp_path / "speech.wav"), model=MODEL, format="wav"))
    names = [event["header"]["event"] for event in events]
    assert names == ["result-generated"] * (len(names) - 1) + ["task-finished"]
    sentences = [event["payload"]["output"]["sentence"] for event in events[:-1]]
    assert_sentences([sentence for sentence in sentences if sentence["end_time"] is not None])


def test_options_and_contexts(client: Any) -> None:
    recognition = client.audio.asr.recognize(
        model=MODEL,
        vocabulary_id="vocab-1",
        phrase_id="vocab-2",
        disfluency_removal_enabled=True,
        diarization_enabled=False,
        parameters={"language_hints": ["en"], "heartbeat": True},
        input=CONTEXT,
    )
    with recognition:
        recognition.send_audio_frame(CLIP.pcm16[:PACKET_BYTES])
        recognition.update_context(CONTEXT)
        assert_sentences(finals_of(hear(recognition, CLIP.pcm16[PACKET_BYTES:])), CLIP.text)


def test_recognitions_at_once_do_not_mix(client: Any) -> None:
    def heard(name: str) -> str:
        with client.audio.asr.recognize(model=MODEL) as recognition:
            return text_of(finals_of(hear(recognition, speech.clip(name).pcm16)))

    alone = [heard(name) for name in PROMPTS]
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(heard, PROMPTS)) == alone


def test_tasks_one_after_the_other_on_one_connection(client: Any) -> None:
    heard: dict[str, str] = {}
    with closing(client.ws_connection(module="audio")) as connection:
        for _ in range(RUNS):
            with client.audio.asr.recognize(model=MODEL, connection=connection) as recognition:
                finals = finals_of(hear(recognition, CLIP.pcm16))
                assert recognition.session.finished
                assert recognition.last_response["header"]["task_id"] == recognition.session.task_id
                heard[recognition.session.task_id] = text_of(finals)
            assert_sentences(finals, CLIP.text)
            assert not connection.closed
    assert len(heard) == RUNS
    assert len(set(heard.values())) == 1


def test_a_task_that_fails_closes_the_connection(client: Any) -> None:
    with closing(client.ws_connection(module="audio")) as connection:
        with client.audio.asr.recognize(model=MODEL, connection=connection) as recognition:
            assert finals_of(hear(recognition, CLIP.pcm16))
        with pytest.raises(NotFoundError):
            client.audio.asr.recognize(model="gpt-4o", connection=connection).start()
        connection._reader.join(TIMEOUT_S)
        assert connection.closed
        with pytest.raises(RuntimeError, match="closed"):
            client.audio.asr.recognize(model=MODEL, connection=connection).start()


def test_a_second_task_leaves_the_first_one_in_peace(client: Any) -> None:
    with (
        closing(client.ws_connection(module="audio")) as connection,
        client.audio.asr.recognize(model=MODEL, connection=connection) as recognition,
    ):
        with pytest.raises(BadRequestError):
            client.audio.asr.recognize(model=MODEL, connection=connection).start()
        assert_sentences(finals_of(hear(recognition, CLIP.pcm16)), CLIP.text)


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"model": "gpt-4o"}, NotFoundError, "Model.NotExist"),
        ({"format": "flac"}, BadRequestError, "InvalidParameter"),
        ({"sample_rate": 7_000}, BadRequestError, "InvalidParameter"),
        ({"parameters": {"max_sentence_silence": 1}}, BadRequestError, "InvalidParameter"),
        ({"input": {"context": "text"}}, BadRequestError, "InvalidParameter"),
    ],
    ids=["model", "format", "rate", "silence", "context"],
)
def test_what_goes_wrong_at_once(client: Any, options: Any, kind: type[DashScopeError], code: str) -> None:
    with pytest.raises(kind) as raised:
        client.audio.asr.recognize(**{"model": MODEL, **options}).start()
    assert type(raised.value) is kind
    assert raised.value.code == code
    assert raised.value.request_id


@pytest.mark.parametrize("shared", [False, True], ids=["own connection", "shared connection"])
def test_what_goes_wrong_later(client: Any, shared: bool) -> None:
    with closing(client.ws_connection(module="audio")) as connection:
        options = {"connection": connection} if shared else {}
        with client.audio.asr.recognize(model=MODEL, **options) as recognition:
            recognition.send_audio_frame(b"ID3\x04" + bytes(6) + b"\xff\xfb\x90\x64" * 1000)
            with pytest.raises(BadRequestError, match="MP3"):
                list(recognition.events())


def test_a_wrong_key(guarded_server: ServerProcess, client: Any) -> None:
    recognition = client.audio.asr.recognize(model=MODEL, ws_url=guarded_server.inference_url, api_key="sk-wrong")
    with pytest.raises(Exception, match=r"401.*InvalidApiKey"):
        recognition.start()


def test_the_vendors_example_of_reuse(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(CLIP.samples))
    environment = {
        **os.environ,
        "NO_PROXY": "127.0.0.1",
        "DASHSCOPE_API_KEY": "sk-test",
        "DASHSCOPE_WEBSOCKET_BASE_URL": server.inference_url,
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-m", EXAMPLE, "asr", "speech.wav", "--output-dir", "out"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["connection_count"], len(summary["runs"])) == ("completed", 1, RUNS)
    assert len({run["task_id"] for run in summary["runs"]}) == RUNS
    assert all(run["final_event"] == "task-finished" and run["connection_open_after_task"] for run in summary["runs"])
    assert {speech.wer(CLIP.text, run["text"]) <= 0.5 for run in summary["runs"]} == {True}
