"""The whole server on the engine transformers, heard through the official SDK."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jiwer
import numpy as np
import pytest

from support.invariants import assert_finished
from support.process import ServerProcess, running_server
from support.sdk_client import TEXT_ONLY, conversation, send
from support.speech import pcm16
from support.tiny_speech import CHECKPOINT, RATE, spoken

SETTINGS = {"ENGINE": "transformers", "QWEN3_ASR_MODEL_PATH": str(CHECKPOINT), "MODEL_DTYPE": "float"}
GAP = np.zeros(round(1.2 * RATE), np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(**SETTINGS) as running:
        yield running


def transcripts(server: ServerProcess, language: str, first: int) -> tuple[str, list[str], list[str]]:
    """Say three clips with pauses; returns what was said, what was heard, and the languages of that."""
    clips = [clip for clip in spoken(language) if len(clip.samples) > RATE][first : first + 3]
    pcm = pcm16(np.concatenate([part for clip in clips for part in (GAP, clip.samples)] + [GAP]))
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        send(client, pcm)
        client.end_session(timeout=120)
    assert_finished(recorder.frames, audio_ms=len(pcm) / 32)
    heard = [frame["language"] for frame in recorder.frames if frame["type"].endswith("completed")]
    return "".join(clip.text for clip in clips), recorder.transcripts, heard


def test_four_sessions_at_once_are_heard_right(server: ServerProcess) -> None:
    """English and Chinese, VAD mode, languages detected."""
    asked = [("en", 0), ("zh", 0), ("en", 3), ("zh", 3)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: transcripts(server, *one), asked))
    for (language, _), (said, texts, languages) in zip(asked, answers, strict=True):
        assert len(texts) == 3
        assert jiwer.cer(said.replace(" ", ""), "".join(texts).replace(" ", "")) < 0.2
        assert languages.count(language) >= 2
    assert "transformers" in str(server.get("/health"))
