"""`demo/demo_sdk.py`, run as a user runs it."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import speech
from support.process import ServerProcess

pytestmark = pytest.mark.sdk

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo_sdk.py"


@pytest.mark.parametrize(("mode", "finals"), [("vad", 4), ("manual", 1)])
def test_demo(server: ServerProcess, mode: str, finals: int) -> None:
    command = [sys.executable, str(DEMO), "--mode", mode, "--file", str(speech.CONVERSATION_WAV), "--url", server.url]
    result = subprocess.run([*command, "--fast"], capture_output=True, text=True, timeout=60, check=True)
    heard = [line.removeprefix("final: ") for line in result.stdout.splitlines() if line.startswith("final: ")]
    assert len(heard) == finals
    assert speech.wer(speech.conversation().text, " ".join(heard)) < 0.5


@pytest.mark.parametrize("file", [speech.CONVERSATION_WAV, Path("no-such.wav")], ids=["nobody listens", "no file"])
def test_a_failure_is_one_sentence(file: Path) -> None:
    with socket.socket() as bound:  # taken, and nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{bound.getsockname()[1]}"
        command = [sys.executable, str(DEMO), "--file", str(file), "--url", url, "--fast"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("demo_sdk: ")


def test_it_is_short() -> None:
    assert len(DEMO.read_text(encoding="utf-8").splitlines()) < 80
