"""The programs in `demo/`, run as a user runs them."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import speech
from support.process import ServerProcess

FOLDER = Path(__file__).resolve().parents[2] / "demo"

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.parametrize("demo", [FOLDER / "demo_sdk.py", FOLDER / "demo_raw.py"], ids=lambda path: path.stem),
]


@pytest.mark.parametrize(("mode", "finals"), [("vad", 4), ("manual", 1)])
def test_demo(server: ServerProcess, demo: Path, mode: str, finals: int) -> None:
    command = [sys.executable, str(demo), "--mode", mode, "--file", str(speech.CONVERSATION_WAV), "--url", server.url]
    result = subprocess.run([*command, "--fast"], capture_output=True, text=True, timeout=60, check=True)
    heard = [line.removeprefix("final: ") for line in result.stdout.splitlines() if line.startswith("final: ")]
    assert len(heard) == finals
    assert speech.wer(speech.conversation().text, " ".join(heard)) < 0.5


@pytest.mark.parametrize("file", [speech.CONVERSATION_WAV, Path("no-such.wav")], ids=["nobody listens", "no file"])
def test_a_failure_is_one_sentence(demo: Path, file: Path) -> None:
    with socket.socket() as bound:  # taken, and nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{bound.getsockname()[1]}"
        command = [sys.executable, str(demo), "--file", str(file), "--url", url, "--fast"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"{demo.stem}: ")


def test_it_is_short(demo: Path) -> None:
    assert len(demo.read_text(encoding="utf-8").splitlines()) < 80
