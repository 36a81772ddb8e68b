"""Processes, seen from outside: whose children live, and waiting for an end."""

import os
import select
import subprocess
from pathlib import Path

PROC = Path("/proc")


def child_processes() -> set[int]:
    """Return the ids of this process's living children."""
    return {pid for pid, parent, state in _processes() if parent == os.getpid() and state != "Z"}


def media_workers() -> set[int]:
    """Return the ids of those that decode files for this process; other tests may have servers running."""
    found = set()
    for pid in child_processes():
        try:
            found |= {pid} if b"_media_worker" in (PROC / str(pid) / "cmdline").read_bytes() else set()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(pid: int) -> set[int]:
    """Return the ids of a process's living children and their children, to any depth."""
    table = [(child, parent) for child, parent, state in _processes() if state != "Z"]
    found = {pid}
    while more := {child for child, parent in table if parent in found} - found:
        found |= more
    return found - {pid}


def ended_within(pid: int, timeout_s: float) -> bool:
    """Wait until a process, of whatever parent, has ended; False if it still runs after `timeout_s`.

    Works on Linux by a handle on the process, which also sees ends that nobody has waited for.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([handle], [], [], timeout_s)
        return bool(ready)
    finally:
        os.close(handle)


def _processes() -> list[tuple[int, int, str]]:
    if not PROC.is_dir():
        return _processes_by_ps()
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The second field is the program's name in parentheses, which may hold anything.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.append((int(entry.name), int(parent), state))
    return found


def _processes_by_ps() -> list[tuple[int, int, str]]:
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True) as listing:
        rows = [line.split() for line in listing.communicate()[0].splitlines()]
        return [(int(pid), int(parent), state[0]) for pid, parent, state in rows if int(pid) != listing.pid]
