"""Standard error of a command: sentences, and bars of progress where a person may be looking; how its output ends.

The bars are rich's. They go away with the end of the command, so that what stays is what was said. Knows nothing of
what the command does.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Screen:
    """Standard error: sentences, and bars of progress while the `with` block lasts.

    Args:
        quiet: tell failures only.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bars = _bars() if not quiet and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def tell(self, sentence: str) -> None:
        """Say what failed."""
        line = f"qwen3-asr-server: {sentence}"
        if self._bars is None:
            sys.stderr.write(f"{line}\n")
        else:
            # Plain: a name in brackets is no markup. Unbroken: the terminal wraps, and a copy has no breaks.
            self._bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Say what else is worth knowing."""
        if not self._quiet:
            self.tell(f"warning: {sentence}")

    @contextmanager
    def bar(self, name: str, *, wanted: bool = True) -> Iterator["Bar"]:
        """Show how far something is, while the block lasts."""
        if self._bars is None or not wanted:
            yield Bar(None, None)
            return
        task = self._bars.add_task(name, total=None, state="")
        try:
            yield Bar(self._bars, task)
        finally:
            self._bars.remove_task(task)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away while the block writes to standard output, which may be the same terminal."""
        if self._bars is None:
            yield
            return
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


class Bar:
    """One line of progress, or none where nobody looks."""

    def __init__(self, bars: "Progress | None", task: "TaskID | None") -> None:
        self._bars = bars
        self._task = task

    def show(self, done: float, total: float | None, state: str) -> None:
        """Show how much is done, of how much as far as that is known, and a word on it."""
        if self._bars is not None and self._task is not None:
            over = total is not None and done >= total
            self._bars.update(self._task, completed=done, total=total, state=state, refresh=over)

    def heard(self, done_s: float, total_s: float | None) -> None:
        """Show how much of a recording is transcribed, in seconds."""
        self.show(done_s, total_s, f"{done_s:.0f}/{total_s:.0f} s" if total_s else f"{done_s:.0f} s")


def drop_output() -> None:
    """Lead standard output nowhere, once nobody reads it: what is left in its buffer must not fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # Both stretch, so that a long name is cut short instead of the bar.
    name = TextColumn("{task.description}", markup=False, table_column=Column(ratio=3, no_wrap=True))
    bar = BarColumn(bar_width=None, table_column=Column(ratio=2))
    state = TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True))
    return Progress(
        name,
        bar,
        state,
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr),
        transient=True,
        # Standard output is for results: rich would send it to the bars' console.
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )
