"""Where the event loop's time goes: a cProfile, folded into a few parts of the server.

The profiler sees Python functions and the C functions they call; time of uvloop itself is what remains of
the thread's CPU time. Knows file names, and nothing of what happens in them.
"""

import cProfile
import pstats
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


@dataclass(frozen=True, slots=True)
class ProfileRows:
    """A folded profile."""

    parts_s: dict[str, float]
    """Own time of each part, the profiler's overhead included."""
    functions: list[tuple[float, int, str]]
    """The costliest functions: own seconds, calls, place."""


def rows_of(profile: cProfile.Profile) -> ProfileRows:
    """Fold a finished profile."""
    stats: dict = pstats.Stats(profile).stats
    parts_s = dict.fromkeys([name for name, _ in PARTS] + [REST], 0.0)
    for (file, _, name), (_, _, own_s, _, callers) in stats.items():
        part = _part_of(f"{file} {name}")
        if part != REST or not callers:
            parts_s[part] += own_s
            continue
        # A built-in of no part of its own (a numpy call, a list's append) belongs to whoever called it.
        for (caller_file, _, caller_name), (_, _, caller_own_s, _) in callers.items():
            parts_s[_part_of(f"{caller_file} {caller_name}")] += caller_own_s
    top = sorted(stats.items(), key=lambda entry: -entry[1][2])[:TOP_FUNCTIONS]
    return ProfileRows(parts_s, [(value[2], value[1], _place(*key)) for key, value in top])


def _part_of(place: str) -> str:
    return next((part for part, marks in PARTS if any(mark in place for mark in marks)), REST)


def _place(file: str, line: int, name: str) -> str:
    short = "/".join(file.rsplit("/", 3)[1:]) if "/" in file else file
    return name if short == "~" else f"{short}:{line} {name}"
