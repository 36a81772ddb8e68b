"""Processes of vLLM end with their parent, also when that was gone before they had begun."""

import pickle
import signal
import subprocess
import sys

import pytest

from qwen3_asr_server.engines._vllm_environment import ParentWatch

MAKE = (
    "import pickle\nfrom qwen3_asr_server.engines._vllm_environment import ParentWatch\nprint(pickle.dumps({}).hex())"
)
ARRIVE = """
import pickle, sys, threading
pickle.loads(bytes.fromhex(sys.argv[1]))
for watch in threading.enumerate():
    if watch.name == "parent watch":
        watch.join(float(sys.argv[2]))
        print("watched")
"""


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_child_whose_parent_is_there_lives() -> None:
    found = child(ARRIVE, pickle.dumps(ParentWatch()).hex(), "0.6")
    assert (found.returncode, found.stdout) == (0, "watched\n")


@pytest.mark.parametrize("sent", ["ParentWatch()", "pickle.loads(bytes.fromhex('{}'))"], ids=["core", "worker"])
def test_a_child_whose_parent_was_gone_before_it_began_ends(sent: str) -> None:
    gone = child(MAKE.format(sent.format(pickle.dumps(ParentWatch()).hex())))
    assert child(ARRIVE, gone.stdout.strip(), "30").returncode == -signal.SIGKILL


def test_where_it_was_made_it_watches_nothing() -> None:
    assert pickle.loads(pickle.dumps(ParentWatch()))
    assert child(MAKE.format("pickle.loads(pickle.dumps(ParentWatch()))")).returncode == 0
