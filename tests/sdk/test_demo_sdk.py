"""`demo/demo_sdk.py`, run as a user runs it."""

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


def test_it_is_short() -> None:
    assert len(DEMO.read_text(encoding="utf-8").splitlines()) < 80
