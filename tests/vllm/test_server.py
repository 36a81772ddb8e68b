"""The whole server on this engine, heard through the official SDK: English and Chinese, VAD and Manual mode."""

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import jiwer
import numpy as np
import pytest
from dashscope.audio.asr import Recognition
from dashscope.audio.qwen_omni.omni_realtime import TranscriptionParams
from websockets.exceptions import ConnectionClosedError

from qwen3_asr_server.domain import Word
from support.children import descendants, ended_within
from support.invariants import COMPLETED, TEXT, assert_finished
from support.process import ServerProcess, running_server
from support.raw_client import RawClient, raw_client
from support.sdk_client import TEXT_ONLY, conversation, send
from support.speech import pcm16
from support.tiny_speech import CHECKPOINT, RATE, TinyClip, spoken
from support.tiny_words import ALIGNER, phrases

SETTINGS = {
    "ENGINE": "vllm",
    "QWEN3_ASR_MODEL_PATH": str(CHECKPOINT),
    "MODEL_DTYPE": "float",
    "WORD_TIMES": "true",
    "ALIGNER_MODEL_PATH": str(ALIGNER),
}
SINGLE = {"en": (), "zh": tuple("零一二三四五六七八九灯门请")}
"""Words of one character, which the recogniser knows when they are said alone; empty for all."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(**SETTINGS) as running:
        yield running


def talk(language: str, gap_s: float = 1.2, turns: int = 6) -> tuple[Sequence[TinyClip], bytes]:
    """Some clips with silence before, between and after them."""
    clips = [clip for clip in spoken(language) if len(clip.samples) > RATE][:turns]
    gap = np.zeros(round(gap_s * RATE), np.float32)
    return clips, pcm16(np.concatenate([part for clip in clips for part in (gap, clip.samples)] + [gap]))


def error_rate(clips: Sequence[TinyClip], texts: Sequence[str]) -> float:
    wanted, got = "".join(clip.text for clip in clips), "".join(texts)
    return float(jiwer.cer(wanted.replace(" ", ""), got.replace(" ", "")))


def test_it_is_what_the_server_says_it_is(server: ServerProcess) -> None:
    health = server.get("/health")
    assert "vllm" in str(health)
    assert str(CHECKPOINT.parent) not in str(health) + str(server.get("/"))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "detected"])
def test_vad_mode(server: ServerProcess, language: str, told: bool) -> None:
    clips, pcm = talk(language)
    with conversation(server.url) as (client, recorder):
        params = TranscriptionParams(language=language) if told else None
        client.update_session(TEXT_ONLY, transcription_params=params)
        send(client, pcm, live=told)
        client.end_session(timeout=60)
    assert_finished(recorder.frames, audio_ms=len(pcm) / 32)
    texts = recorder.transcripts
    assert len(texts) == len(clips)
    assert error_rate(clips, texts) < 0.2
    heard = [frame["language"] for frame in recorder.frames if frame["type"].endswith("completed")]
    assert heard.count(language) >= len(clips) - 1
    assert recorder.all_of(TEXT) or not told


def test_finals_do_not_depend_on_the_silence_setting(server: ServerProcess) -> None:
    """Where every pause is longer than it: what is decoded ends with the speech, not with the silence."""
    clips, pcm = talk("en", gap_s=2.6, turns=8)
    told: dict[int, list[str]] = {}
    for silence_ms in (200, 400, 800, 2000):
        with conversation(server.url) as (client, recorder):
            client.update_session(TEXT_ONLY, turn_detection_silence_duration_ms=silence_ms)
            send(client, pcm)
            client.end_session(timeout=60)
        assert_finished(recorder.frames, audio_ms=len(pcm) / 32)
        told[silence_ms] = recorder.transcripts
    assert len(told[800]) == len(clips)
    assert told == dict.fromkeys(told, told[800])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_manual_mode(server: ServerProcess, language: str) -> None:
    clips, pcm = talk(language, gap_s=0.3, turns=3)
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=False)
        send(client, pcm)
        client.commit()
        recorder.wait_for("conversation.item.input_audio_transcription.completed")
        client.end_session(timeout=60)
    assert_finished(recorder.frames)
    assert len(recorder.transcripts) == 1
    assert error_rate(clips, recorder.transcripts) < 0.2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_words_have_times_on_the_session_clock(server: ServerProcess, language: str, record_property) -> None:
    gap = np.zeros(round(1.6 * RATE), np.float32)
    true: list[Word] = []
    audio = gap
    for phrase in phrases(6, language, words=(3, 6), gaps_s=(0.02, 0.25), only=SINGLE[language]):
        true += [word.shifted(len(audio)) for word in phrase.words]
        audio = np.concatenate([audio, phrase.samples, gap])
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, words=True, transcription_params=TranscriptionParams(language=language))
        send(client, pcm16(audio), live=True)
        client.end_session(timeout=60)
    assert_finished(recorder.frames, audio_ms=len(audio) / 16)
    finals = recorder.all_of(COMPLETED)
    words = [word for final in finals for word in final["words"]]
    for final in finals:
        assert "".join(word["text"] for word in final["words"]) == final["transcript"].replace(" ", "")
        assert 0 < final["confidence"] <= 1
    times = [word[name] for word in words for name in ("begin_time", "end_time")]
    assert times == sorted(times)
    matcher = SequenceMatcher(None, [word["text"] for word in words], [word.text for word in true], autojunk=False)
    same = [(words[a + n], true[b + n]) for a, b, size in matcher.get_matching_blocks() for n in range(size)]
    assert len(same) >= 0.6 * len(true), "the recogniser heard other words"
    errors = [
        abs(ms - at / 16)
        for got, known in same
        for ms, at in ((got["begin_time"], known.start), (got["end_time"], known.end))
    ]
    median, p90 = np.quantile(errors, [0.5, 0.9])
    record_property("figure", f"{len(same)} of {len(true)} words, median {median:.0f} ms, p90 {p90:.0f} ms")
    assert median <= 120
    assert p90 <= 400


def test_words_come_only_when_asked_for(server: ServerProcess) -> None:
    _, pcm = talk("en", turns=1)
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        send(client, pcm)
        client.end_session(timeout=60)
    assert not {"words", "confidence"} & recorder.all_of(COMPLETED)[0].keys()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_file_as_a_task(server: ServerProcess, language: str, tmp_path: Path) -> None:
    """`Recognition.call`: a sentence for each clip, all of whose words have times within it and in order."""
    clips, pcm = talk(language)
    (tmp_path / "talk.pcm").write_bytes(pcm)
    asked = {"format": "pcm", "sample_rate": RATE, "language_hints": [language], "max_sentence_silence": 800}
    client = Recognition(model="fun-asr-realtime", callback=None, **asked)
    where = {"base_address": server.inference_url, "api_key": "any"}
    sentences = client.call(str(tmp_path / "talk.pcm"), **where).get_sentence()
    assert [sentence["sentence_id"] for sentence in sentences] == list(range(1, len(clips) + 1))
    assert error_rate(clips, [sentence["text"] for sentence in sentences]) < 0.2
    for sentence in sentences:
        words = sentence["words"]
        written = "".join(word["text"] + word["punctuation"] for word in words)
        assert written == sentence["text"].replace(" ", "") != ""
        times = [time for word in words for time in (word["begin_time"], word["end_time"])]
        assert times == sorted(times)
        assert sentence["begin_time"] - 300 <= times[0] < times[-1] <= sentence["end_time"] + 300


def test_silence_has_no_items(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY)
        send(client, bytes(32_000 * 3))
        client.end_session(timeout=60)
    assert_finished(recorder.frames)
    assert recorder.transcripts == []


async def test_a_client_that_vanishes_in_mid_decode_leaves_nothing(server: ServerProcess) -> None:
    """Its connection is cut while a step of its utterance runs; nobody closes anything."""
    _, pcm = talk("en", gap_s=0.1)
    async with raw_client(server.url) as client:
        speaking = asyncio.create_task(speak(client, pcm))
        await becomes_true(lambda: running_steps(server) > 0 and held_tokens(server) > 0)
        client.socket.transport.abort()
        await asyncio.wait({speaking})
    assert isinstance(speaking.exception(), ConnectionClosedError)
    await becomes_true(lambda: open_sessions(server) == 0)
    await becomes_true(lambda: held_tokens(server) == running_steps(server) == 0)
    assert server.get("/stats")["scheduler"]["open_streams"] == 0
    async with raw_client(server.url) as client:
        await client.append(talk("en", turns=1)[1])
        assert (await client.read_until(COMPLETED))["transcript"]


async def speak(client: RawClient, pcm: bytes) -> None:
    """Talk on and on, at the pace of speech."""
    for start in itertools.cycle(range(0, len(pcm) - 3200, 3200)):
        await client.append(pcm[start : start + 3200])
        await asyncio.sleep(0.1)


async def becomes_true(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.005)


def running_steps(server: ServerProcess) -> int:
    now = server.get("/stats")["scheduler"]
    return int(now["partials_running"] + now["finals_running"])


def held_tokens(server: ServerProcess) -> float:
    return float(server.get("/stats")["engine_counters"]["kv_tokens_charged"])


def open_sessions(server: ServerProcess) -> int:
    return int(server.get("/stats")["sessions"]["open"])


def test_a_killed_server_leaves_no_process() -> None:
    with pytest.raises(AssertionError, match="the server died"):
        kill_a_server()


def kill_a_server() -> None:
    with running_server(**SETTINGS) as running:
        children = descendants(running.process.pid)
        assert len(children) >= 4, "no engine core and worker of both models"
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        assert all(ended_within(child, 20) for child in children), "a child outlived the server"
