"""Standard error of a command: sentences, and a line of progress where a person may be looking.

Knows nothing of what the command does.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Final

_SHOWN_EVERY_S: Final = 0.1


class Screen:
    """Standard error: sentences, and a line of progress where a person may be looking.

    Args:
        quiet: tell failures only.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._moving = not quiet and sys.stderr.isatty()
        self._shown = False
        self._next_at = 0.0

    def tell(self, sentence: str) -> None:
        """Say what failed."""
        self.clear()
        sys.stderr.write(f"qwen3-asr-server: {sentence}\n")

    def warn(self, sentence: str) -> None:
        """Say what else is worth knowing."""
        if not self._quiet:
            self.tell(f"warning: {sentence}")

    def note(self, text: str) -> None:
        """Show where things stand, until the next line."""
        if self._moving:
            # A line that wraps could not be taken back.
            room = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:room]}")
            sys.stderr.flush()
            self._shown = True

    def progress(self, name: str) -> Callable[[float, float | None], None]:
        """Return what shows how much of a file is done."""

        def show(done_s: float, total_s: float | None) -> None:
            now = time.monotonic()
            if now >= self._next_at:
                self._next_at = now + _SHOWN_EVERY_S
                self.note(f"{done_s:.0f}/{total_s:.0f} s  {name}" if total_s else f"{done_s:.0f} s  {name}")

        return show

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
