"""`QwenTranscription` and `Transcription`: files transcribed asynchronously, real speech and the embedded engine."""

import json
import urllib.request
from typing import Any

import pytest
from dashscope.audio.asr import Transcription
from dashscope.audio.qwen_asr import QwenTranscription

from support import speech
from support.recorded_sdk import SECONDS, WORDS, WORST_WER

pytestmark = [pytest.mark.sdk, pytest.mark.usefixtures("pointed")]


def fetched(url: str) -> Any:
    """Fetch a result as users of the SDK do: without a key."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.loads(response.read())


def test_one_file(web: str) -> None:
    url = f"{web}/speech.wav"
    task = QwenTranscription.async_call(
        model="qwen3-asr-flash-filetrans", file_url=url, language="en", enable_itn=False, enable_words=True
    )
    assert (task.status_code, task.output.task_status) == (200, "PENDING")
    response = QwenTranscription.wait(task)
    assert response.output.task_status == "SUCCEEDED", response
    assert response.usage["seconds"] == pytest.approx(SECONDS, abs=1)
    file = fetched(response.output["result"]["transcription_url"])
    assert file["file_url"] == url
    (transcript,) = file["transcripts"]
    assert speech.wer(WORDS, transcript["text"]) <= WORST_WER
    words = [word for sentence in transcript["sentences"] for word in sentence["words"]]
    assert [word["text"] for word in words] == transcript["text"].split()
    assert QwenTranscription.fetch(task).output == response.output


def test_many_files(web: str) -> None:
    response = Transcription.call(
        model="fun-asr",
        file_urls=[f"{web}/speech.wav", f"{web}/missing.wav"],
        language_hints=["en"],
        diarization_enabled=True,
        speaker_count=2,
    )
    assert response.output.task_status == "SUCCEEDED", response
    good, bad = response.output["results"]
    assert (good["subtask_status"], bad["subtask_status"]) == ("SUCCEEDED", "FAILED")
    assert bad["code"] == "FILE_404_NOT_FOUND"
    (transcript,) = fetched(good["transcription_url"])["transcripts"]
    assert speech.wer(WORDS, transcript["text"]) <= WORST_WER


def test_a_file_that_cannot_be_had(web: str) -> None:
    response = QwenTranscription.call(model="qwen3-asr-flash-filetrans", file_url=f"{web}/missing.wav")
    assert response.status_code == 200
    assert (response.output.task_status, response.output["code"]) == ("FAILED", "FILE_404_NOT_FOUND")


def test_a_list_and_what_cannot_be_cancelled(web: str) -> None:
    done = QwenTranscription.call(model="qwen3-asr-flash-filetrans", file_url=f"{web}/missing.wav")
    task = done.output.task_id
    listed = QwenTranscription.list(status="FAILED", page_size=50)
    assert task in [each["task_id"] for each in listed.output["tasks"]]
    refused = QwenTranscription.cancel(task)
    assert (refused.status_code, refused.code) == (400, "UnsupportedOperation")


def test_cancelling(web: str) -> None:
    task = Transcription.async_call(model="fun-asr", file_urls=[f"{web}/speech.wav"] * 20)
    assert Transcription.cancel(task).status_code == 200
    assert Transcription.wait(task).output.task_status == "CANCELED"


def test_a_task_that_never_was() -> None:
    assert QwenTranscription.wait("no-such-task").output.task_status == "UNKNOWN"


def test_an_unknown_model(web: str) -> None:
    response = Transcription.async_call(model="gpt-4o", file_urls=[f"{web}/speech.wav"])
    assert (response.status_code, response.code) == (404, "Model.NotExist")
