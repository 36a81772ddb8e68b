"""One clip through every door, Silero and the embedded engine: the same text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from dashscope.audio.asr import Recognition

from support import speech
from support.process import SOURCE, ServerProcess, running_server
from support.sdk_client import TEXT_ONLY, conversation, send
from support.server import wait_until

CLIP = speech.conversation()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(RECORDING_FOLDERS=str(speech.DATA)) as running:
        yield running


@pytest.fixture(scope="module")
def spoken(server: ServerProcess) -> str:
    """Return what the realtime door makes of the clip in VAD mode."""
    with conversation(server.url) as (client, recorder):
        client.update_session(TEXT_ONLY, enable_turn_detection=True)
        send(client, CLIP.pcm16, 3200)
        client.end_session(timeout=60)
    assert len(recorder.transcripts) == len(speech.conversation_turns())
    return " ".join(recorder.transcripts)


def ask(server: ServerProcess, path: str, **request: object) -> httpx.Response:
    answer = httpx.post(f"http://127.0.0.1:{server.port}{path}", trust_env=False, timeout=120, **request)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return answer


def dashscope(server: ServerProcess, **headers: str) -> str:
    message = {"role": "user", "content": [{"audio": str(CLIP.path)}]}
    path = "/api/v1/services/aigc/multimodal-generation/generation"
    answer = ask(server, path, json={"model": "qwen3-asr-flash", "input": {"messages": [message]}}, headers=headers)
    last = json.loads(answer.text.rpartition("data:")[2])
    return str(last["output"]["choices"][0]["message"]["content"][0]["text"])


def with_file(server: ServerProcess, path: str, **fields: str) -> httpx.Response:
    return ask(server, path, files={"file": CLIP.path.read_bytes()}, data=fields)


def last_event(answer: httpx.Response) -> str:
    return str(json.loads(answer.text.strip().rpartition("data: ")[2])["text"])


def by_chat(server: ServerProcess, path: str, kind: str, field: str) -> str:
    """Return what is answered to a chat message with the clip, without the raw model's head."""
    part = {"type": kind, kind: {field: f"file://{CLIP.path}"}}
    body = {"model": "qwen3-asr-flash", "messages": [{"role": "user", "content": [part]}]}
    content = ask(server, path, json=body).json()["choices"][0]["message"]["content"]
    return str(content).removeprefix("language English<asr_text>")


def by_job(server: ServerProcess) -> str:
    """Return what a job of one file makes of the clip."""
    body = {"model": "qwen3-asr-flash-filetrans", "input": {"file_url": str(CLIP.path)}}
    headers = {"X-DashScope-Async": "enable"}
    submitted = ask(server, "/api/v1/services/audio/asr/transcription", json=body, headers=headers).json()
    task = f"/api/v1/tasks/{submitted['output']['task_id']}"
    outputs: list[dict[str, Any]] = []

    def over() -> bool:
        outputs.append(httpx.get(f"http://127.0.0.1:{server.port}{task}", trust_env=False).json()["output"])
        return outputs[-1]["task_status"] in ("SUCCEEDED", "FAILED")

    wait_until(over, 60)
    (transcript,) = httpx.get(outputs[-1]["result"]["transcription_url"], trust_env=False).json()["transcripts"]
    return str(transcript["text"])


def by_task(server: ServerProcess) -> str:
    """Return what `Recognition.call` of the SDK makes of the clip."""
    asked = {"format": "wav", "sample_rate": speech.RATE, "max_sentence_silence": 800}
    client = Recognition(model="fun-asr-realtime", callback=None, **asked)
    result = client.call(str(CLIP.path), base_address=server.inference_url, api_key="none")
    return " ".join(sentence["text"] for sentence in result.get_sentence())


def by_command(*flags: str) -> str:
    """Return what the command `transcribe` prints."""
    command = [sys.executable, "-m", "qwen3_asr_server", "transcribe", str(CLIP.path), "--stdout", "--quiet", *flags]
    environment = {**os.environ, "ENGINE": "pocketsphinx", "POCKETSPHINX_DECODERS": "2", "DECODE_TIMEOUT_S": "30"}
    environment |= {"PYTHONPATH": str(SOURCE), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.removesuffix("\n")


DOORS: dict[str, Callable[[ServerProcess], str]] = {
    "dashscope": dashscope,
    "dashscope as it comes": lambda server: dashscope(server, Accept="text/event-stream"),
    "rest": lambda server: with_file(server, "/api/transcribe").json()["text"],
    "rest with progress": lambda server: last_event(with_file(server, "/api/transcribe", stream="true")),
    "rest by path": lambda server: ask(server, "/api/transcribe", json={"url": str(CLIP.path)}).json()["text"],
    "job": by_job,
    "task": by_task,
    "openai": lambda server: with_file(server, "/v1/audio/transcriptions", model="whisper-1").json()["text"],
    "openai as text": lambda server: with_file(
        server, "/v1/audio/transcriptions", response_format="text"
    ).text.removesuffix("\n"),
    "openai as it comes": lambda server: last_event(with_file(server, "/v1/audio/transcriptions", stream="true")),
    "chat": lambda server: by_chat(server, "/v1/chat/completions", "audio_url", "url"),
    "compatible mode": lambda server: by_chat(server, "/compatible-mode/v1/chat/completions", "input_audio", "data"),
    "command": lambda _: by_command(),
    "command by WebSocket's address": lambda server: by_command("--url", server.url),
    "command by HTTP": lambda server: by_command("--url", f"http://127.0.0.1:{server.port}"),
}
"""Every other way to a transcript: a new door is a line."""


@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_text_of_the_realtime_door(server: ServerProcess, spoken: str, door: str) -> None:
    assert DOORS[door](server) == spoken != ""


def test_words_have_times_within_their_segments(server: ServerProcess) -> None:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    answer = ask(server, "/v1/audio/transcriptions", files={"file": CLIP.path.read_bytes()}, data=fields)
    body = answer.json()
    assert [word["word"] for word in body["words"]] == body["text"].split()
    for turn, segment in zip(speech.conversation_turns(), body["segments"], strict=True):
        assert segment["start"] == pytest.approx(turn.start_s, abs=0.5)
        inside = [word for word in body["words"] if segment["start"] <= word["start"] < segment["end"]]
        assert [word["word"] for word in inside] == segment["text"].split()
