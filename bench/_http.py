"""Waiting for a server: its socket is open before it takes sessions. Used by the benchmarks."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable


def wait_ready(url: str, timeout_s: float, lives: Callable[[], bool] = lambda: True) -> None:
    """Wait until a page is there.

    Args:
        url: answers 200 when sessions are taken.
        timeout_s: longest wait.
        lives: whether it is worth waiting on.

    Raises:
        RuntimeError: it never was.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and lives():
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise RuntimeError("the server did not become ready")
