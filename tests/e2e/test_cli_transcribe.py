"""The command `transcribe` as users run it: a process of its own, Silero, the embedded engine and real speech."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3_asr_server.config import Settings
from qwen3_asr_server.engines import load_engine
from qwen3_asr_server.engines._base import EngineOptions
from qwen3_asr_server.runtime.media import MediaLimits, open_media
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.session.recorded import TranscribeOptions
from qwen3_asr_server.text.subtitles import as_srt, as_verbose_json
from qwen3_asr_server.text.transcript import Transcript
from support import speech
from support.audio_files import wav_bytes
from support.children import descendants, ended_within
from support.media_files import KINDS, write_media

DEADLINE_S = 120
KIND = {kind.name: kind for kind in KINDS}


def started(folder: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    """Start the command in a folder."""
    environment = {**os.environ, "ENGINE": "pocketsphinx", "POCKETSPHINX_DECODERS": "2", "DECODE_TIMEOUT_S": "60"}
    command = [sys.executable, "-m", "qwen3_asr_server", "transcribe", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def run(folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command; return its status, output and errors."""
    with started(folder, *arguments) as process:
        output, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output.decode(), errors.decode()


async def expected(*paths: Path) -> list[Transcript]:
    """Return what the services make of files."""
    engine = load_engine("pocketsphinx", EngineOptions(max_decoders=2, decode_timeout_s=60))
    services = Services(Settings(_env_file=None, decode_timeout_s=60), engine=engine)
    await services.start()
    try:
        found = []
        for path in paths:
            async with open_media(path, MediaLimits()) as media:
                found.append(await services.transcribe(media, TranscribeOptions(words=True)))
        return found
    finally:
        await services.stop()


def test_it_writes_what_every_door_gives(tmp_path: Path) -> None:
    talk = write_media(tmp_path / "talk.webm", KIND["webm"], _at(48_000, speech.conversation().samples))
    prompt = tmp_path / "prompt.flac"
    prompt.write_bytes(speech.clip("queue-thankyou").path.read_bytes())
    whole, short = asyncio.run(expected(talk, prompt))
    assert short.text == "thank you for your patience"
    assert speech.wer(speech.conversation().text, whole.text) < 0.5

    status, output, errors = run(tmp_path, "talk.webm", "missing.wav", "prompt.flac", "--format", "srt", "--words")
    assert (status, output) == (1, "")
    warning, *failures = errors.splitlines()
    assert "English-only" in warning
    assert failures == ["qwen3-asr-server: missing.wav: No such file or directory."]
    assert (tmp_path / "talk.srt").read_text() == as_srt(whole)
    assert (tmp_path / "prompt.srt").read_text() == as_srt(short)

    options = ("--format", "verbose_json", "--words", "--stdout", "--quiet", "--language", "en")
    status, output, errors = run(tmp_path, "prompt.flac", *options)
    assert (status, json.loads(output), errors) == (0, as_verbose_json(short, words=True), "")
    assert {path.name for path in tmp_path.iterdir()} == {"talk.webm", "talk.srt", "prompt.flac", "prompt.srt"}


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["prompt.flac", "--language", "zh"], 2, "does not know the language zh; it knows en."),
        (["prompt.flac", "--language", "klingon"], 2, "no language is called 'klingon'"),
        (["prompt.flac", "--engine", "nonesuch"], 1, "nonesuch"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, arguments: list[str], status: int, reason: str) -> None:
    (tmp_path / "prompt.flac").write_bytes(speech.clip("queue-thankyou").path.read_bytes())
    code, output, errors = run(tmp_path, *arguments)
    assert (code, output) == (status, "")
    assert reason in errors
    assert "Traceback" not in errors
    assert len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_leaves_finished_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "short.flac").write_bytes(speech.clip("queue-thankyou").path.read_bytes())
    (tmp_path / "long.wav").write_bytes(wav_bytes(np.tile(speech.long_clip("paragraph_75s").samples, 12)))
    with started(tmp_path, "short.flac", "long.wav", "--quiet") as process:
        _wait_for(tmp_path / "short.txt", process)
        children = descendants(process.pid)
        assert children
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, output, errors) == (130, b"", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"short.flac", "short.txt", "long.wav"}
    assert (tmp_path / "short.txt").read_text() == "thank you for your patience\n"
    assert all(ended_within(pid, DEADLINE_S) for pid in children)


def test_a_reader_that_goes_away_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "short.flac").write_bytes(speech.clip("queue-thankyou").path.read_bytes())
    with started(tmp_path, "short.flac", "--stdout", "--quiet") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(DEADLINE_S) == 1
    assert errors == b"qwen3-asr-server: Standard output cannot be written: Broken pipe.\n"


def test_standard_output_that_is_closed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "short.flac").write_bytes(speech.clip("queue-thankyou").path.read_bytes())
    command = [sys.executable, "-m", "qwen3_asr_server", "transcribe", "short.flac", "--stdout", "--quiet"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    ended = subprocess.run(closed, cwd=tmp_path, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False)
    assert ended.stderr == b"qwen3-asr-server: Standard output cannot be written: Bad file descriptor.\n"
    assert ended.returncode == 1


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _at(rate: int, samples: speech.Samples) -> speech.Samples:
    """Return samples [n, 1] at a multiple of 16 kHz, each repeated."""
    return samples.repeat(rate // speech.RATE)[:, None]
