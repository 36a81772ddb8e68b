"""Where the event loop's time goes: a cProfile, folded into a few parts of the server.

The profiler counts CPU time of the thread, sees Python functions and the C functions they call, and costs more
than many of them; its cost, measured beforehand, is taken off. Time of uvloop itself is what remains of the
thread's CPU time. Knows file names, and nothing of what happens in them.
"""

import cProfile
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass

PARTS = (
    ("JSON and base64", ("json/", "base64.py", "binascii", "_json", "orjson")),
    ("PCM and resampling", ("qwen3_asr_server/audio/", "soxr")),
    ("wire protocol", ("qwen3_asr_server/protocols/",)),
    ("session machine and text", ("qwen3_asr_server/session/", "qwen3_asr_server/text/")),
    ("runtime (driver, batcher, scheduler)", ("qwen3_asr_server/runtime/", "qwen3_asr_server/vad/")),
    ("front end (socket loop)", ("qwen3_asr_server/frontends/",)),
    ("metrics", ("prometheus_client/", "qwen3_asr_server/metrics.py")),
    ("WebSocket and ASGI", ("uvicorn/", "websockets/", "starlette/", "fastapi/", "httptools")),
    ("asyncio", ("asyncio/", "_asyncio", "uvloop", "contextlib.py", "concurrent/", "threading.py", "selectors.py")),
)
REST = "rest"
TOP_FUNCTIONS = 25
CALIBRATION_CALLS = 100_000


@dataclass(frozen=True, slots=True)
class ProfileRows:
    """A folded profile."""

    parts_s: dict[str, float]
    """Own CPU time of each part."""
    functions: list[tuple[float, int, str]]
    """The costliest functions: own seconds, calls, place."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the profiler adds for each call, in seconds."""

    callee_s: float
    caller_s: float


def new_profile() -> cProfile.Profile:
    """Return a profiler of CPU time, to be enabled in the thread in question."""
    return cProfile.Profile(time.thread_time)


def measure_overhead() -> Overhead:
    """Profile a call of nothing."""
    plain_s = _timed(lambda: _call_nothing(CALIBRATION_CALLS))
    profile = new_profile()
    profile.runcall(_call_nothing, CALIBRATION_CALLS)
    own_s = {name: own for (_, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items()}
    return Overhead(
        callee_s=own_s["_nothing"] / CALIBRATION_CALLS,
        caller_s=max(0.0, own_s["_call_nothing"] - plain_s) / CALIBRATION_CALLS,
    )


def rows_of(profile: cProfile.Profile, overhead: Overhead) -> ProfileRows:
    """Fold a finished profile."""
    stats: dict = pstats.Stats(profile).stats
    calls_made = dict.fromkeys(stats, 0)
    for _, _, _, _, callers in stats.values():
        for caller, (calls, _, _, _) in callers.items():
            calls_made[caller] += calls
    own_s = {
        key: max(0.0, own - calls * overhead.callee_s - calls_made[key] * overhead.caller_s)
        for key, (_, calls, own, _, _) in stats.items()
    }
    parts_s = dict.fromkeys([name for name, _ in PARTS] + [REST], 0.0)
    for key, (_, calls, _, _, callers) in stats.items():
        part = _part_of(key)
        if part != REST or not callers:
            parts_s[part] += own_s[key]
            continue
        # A built-in of no part of its own (a numpy call, a list's append) belongs to whoever called it.
        for caller, (calls_from, _, _, _) in callers.items():
            parts_s[_part_of(caller)] += own_s[key] * calls_from / calls
    top = sorted(stats, key=lambda key: -own_s[key])[:TOP_FUNCTIONS]
    return ProfileRows(parts_s, [(own_s[key], stats[key][1], _place(*key)) for key in top])


def _part_of(function: tuple[str, int, str]) -> str:
    place = f"{function[0]} {function[2]}"
    return next((part for part, marks in PARTS if any(mark in place for mark in marks)), REST)


def _place(file: str, line: int, name: str) -> str:
    short = "/".join(file.rsplit("/", 3)[1:]) if "/" in file else file
    return name if short == "~" else f"{short}:{line} {name}"


def _timed(action: Callable[[], None]) -> float:
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def _call_nothing(times: int) -> None:
    for _ in range(times):
        _nothing()


def _nothing() -> None:
    pass
