"""The second generation of the SDK, `Client.audio.asr`: files transcribed asynchronously."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope.v2.errors import DashScopeError, NotFoundError

from support import speech
from support.recorded_sdk import WORDS, WORST_WER, RecordingServer, served, wav

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.filterwarnings("ignore:dashscope 2.0 audio API is a preview:FutureWarning"),
]


@pytest.fixture(scope="module")
def asr(recordings: RecordingServer) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        with dashscope.Client(
            api_key=recordings.key, base_url=recordings.base_url, timeout=60, max_retries=0
        ) as client:
            yield client.audio.asr


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("web")
    (folder / "speech.wav").write_bytes(wav())
    with served(folder) as address:
        yield address


def test_transcribe(asr: Any, web: str) -> None:
    job = asr.transcribe([f"{web}/speech.wav"], parameters={"language_hints": ["en"]}, poll_interval=0.1)
    assert job.succeeded
    assert job.submitted_at <= job.scheduled_at <= job.finished_at
    (result,) = job.results
    with urllib.request.urlopen(result.transcription_url, timeout=10) as response:
        (transcript,) = json.loads(response.read())["transcripts"]
    assert speech.wer(WORDS, transcript["text"]) <= WORST_WER


async def test_the_asynchronous_client(asr: Any, recordings: RecordingServer, web: str) -> None:
    address = {"api_key": recordings.key, "base_url": recordings.base_url}
    async with dashscope.AsyncClient(**address, timeout=60, max_retries=0) as client:
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
