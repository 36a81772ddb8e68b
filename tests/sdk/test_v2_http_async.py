"""The second generation of the SDK, `Client.audio.asr`: files transcribed asynchronously."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import dashscope
import pytest
from dashscope.v2.errors import DashScopeError, NotFoundError

from support import speech
from support.recorded_sdk import WORDS, WORST_WER

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.filterwarnings("ignore:dashscope 2.0 audio API is a preview:FutureWarning"),
]


@pytest.fixture(scope="module")
def asr(second_generation: dict[str, Any]) -> Iterator[Any]:
    with dashscope.Client(**second_generation) as client:
        yield client.audio.asr


def test_transcribe(asr: Any, web: str) -> None:
    job = asr.transcribe([f"{web}/speech.wav"], parameters={"language_hints": ["en"]}, poll_interval=0.1)
    assert job.succeeded
    assert job.submitted_at <= job.scheduled_at <= job.finished_at
    (result,) = job.results
    with urllib.request.urlopen(result.transcription_url, timeout=10) as response:
        (transcript,) = json.loads(response.read())["transcripts"]
    assert speech.wer(WORDS, transcript["text"]) <= WORST_WER


async def test_the_asynchronous_client(second_generation: dict[str, Any], web: str) -> None:
    async with dashscope.AsyncClient(**second_generation) as client:
        job = await client.audio.asr.transcribe([f"{web}/speech.wav"], poll_interval=0.1)
    assert job.succeeded


def test_a_file_that_cannot_be_had(asr: Any, web: str) -> None:
    with pytest.raises(DashScopeError) as raised:
        asr.transcribe([f"{web}/missing.wav"], poll_interval=0.1)
    assert "404" in str(raised.value)


def test_an_unknown_model(asr: Any, web: str) -> None:
    with pytest.raises(NotFoundError):
        asr.jobs.create(model="gpt-4o", file_urls=[f"{web}/speech.wav"])


def test_a_task_that_never_was(asr: Any) -> None:
    job = asr.jobs.wait("no-such-task")
    assert (job.status, job.finished, job.succeeded) == ("UNKNOWN", True, False)
