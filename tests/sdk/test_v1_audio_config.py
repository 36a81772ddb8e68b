"""`input_audio_config`, the nested form of the audio format in newer SDKs."""

from typing import Any

import pytest
import soxr
from dashscope.audio.qwen_omni.omni_realtime import AudioFormatConfig, AudioFormatType, TranscriptionParams

from support import speech
from support.invariants import assert_finished
from support.process import ServerProcess
from support.sdk_client import TEXT_ONLY, conversation, send

pytestmark = pytest.mark.sdk

CLIP = speech.clip("queue-quantity1")


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
def test_rates(server: ServerProcess, rate: int) -> None:
    audio = speech.pcm16(soxr.resample(CLIP.samples, 16_000, rate))
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, input_audio_config=AudioFormatConfig("pcm", rate))
        session = recorder.wait_for("session.updated")["session"]
        send(client, audio, rate // 5)
        client.end_session()
    assert_finished(recorder.frames, audio_ms=CLIP.seconds * 1000 + 1)
    assert (session["input_audio_format"], session["sample_rate"]) == ("pcm", rate)
    assert speech.wer(CLIP.text, recorder.transcripts[0]) < 0.5


def test_wav(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, input_audio_config=AudioFormatConfig(AudioFormatType.WAV))
        send(client, speech.CONVERSATION_WAV.read_bytes())
        client.end_session()
    assert_finished(recorder.frames)
    assert speech.wer(speech.conversation().text, " ".join(recorder.transcripts)) < 0.5


def test_together_with_transcription_params(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(
            TEXT_ONLY,
            input_audio_config=AudioFormatConfig("pcm", 8_000),
            transcription_params=TranscriptionParams(language="en"),
        )
        session: Any = recorder.wait_for("session.updated")["session"]
        client.end_session()
    assert session["sample_rate"] == 8_000
    assert session["input_audio_transcription"] == {"language": "en"}


def test_a_format_nobody_knows_is_refused(server: ServerProcess) -> None:
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, input_audio_config=AudioFormatConfig("mp3"))
        error = recorder.wait_for("error")["error"]
        client.end_session()
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == "session.audio.input.format.type"
