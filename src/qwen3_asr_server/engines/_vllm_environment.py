"""What vLLM finds around it when it starts, and the end of its processes with this one.

vLLM's engine core does not notice that its parent was killed; it would keep the GPU's memory for ever. The
configuration that vLLM pickles into its child processes carries a `ParentWatch`, and unpickling that starts a
thread which looks whether the parent is still there. Does not import vLLM, so that it can be asked before and while
that is loaded; `vllm.py` and `_vllm_adapter` call it.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

_WATCH_S: Final = 0.5


def prepare() -> None:
    """Set what vLLM reads from the environment, where the operator has not. Call it before vLLM is imported."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")


def first_line(problem: Exception) -> str:
    """Return what a person may read of a failure: one line, no path."""
    lines = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return " ".join(Path(word).name if "/" in word else word for word in lines[0].split())[:300]


class ParentWatch:
    """Passes for vLLM's `additional_config`; does its work when it arrives in another process."""

    def __init__(self) -> None:
        self._home = os.getpid()

    def compute_hash(self) -> str:
        """Say that it does not change what is computed, as vLLM asks of its configuration."""
        return ""

    def __getstate__(self) -> dict[str, int]:
        # Who pickles it is the parent, and may be gone when it arrives.
        return {"_home": self._home, "parent": os.getpid()}

    def __setstate__(self, state: dict[str, int]) -> None:
        self._home = state["_home"]
        if os.getpid() not in state.values():
            threading.Thread(target=_end_with, args=(state["parent"],), name="parent watch", daemon=True).start()


def _end_with(parent: int) -> None:
    # multiprocessing's handle on the parent does not exist yet while its arguments are unpickled.
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGKILL)
