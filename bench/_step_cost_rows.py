"""What a run of `step_cost.py` writes down and prints: the cost of its steps as percentiles and sums."""

from dataclasses import dataclass
from typing import Any

from _report import percentile
from _step_cost_report import growth, saved
from _work import Encoded, StepCount, bins, count_windows

BATCHED_TOKENS = 2048
"""Of a prompt, in one step of vLLM on the processor."""
TAIL_S = 60
"""Sessions beside the measured one may be so much ahead of it."""


@dataclass(slots=True)
class Measured:
    """One policy at one cadence."""

    steps: list[StepCount]
    """Of all sessions."""
    encoded: list[Encoded]
    cpu_s: float
    """CPU time of this process, which the engine core and its worker are not part of."""
    rounds_s: float


def row_of(measured: Measured, policy: str, cadence_s: float, seconds: float) -> dict[str, Any]:
    """Return what is written down."""
    rounds = [step for step in measured.steps if step.session == 0]
    finish = rounds.pop() if rounds[-1].kind == "final" and rounds[-1].at_s >= seconds else None
    everyone = [step for step in measured.steps if step is not finish]
    windows = count_windows(measured.encoded)
    total = rounds if finish is None else [*rounds, finish]
    whole = [step for step in total if step.kind != "partial"]
    finals = [step.serial(BATCHED_TOKENS) for step in whole]
    return {
        "policy": policy,
        "cadence_s": cadence_s,
        "seconds": seconds,
        "steps": len(rounds),
        "all_steps": len(everyone),
        "prefill": spread([step.prefill for step in rounds]),
        "cached": spread([step.cached for step in rounds]),
        "embeddings": spread([step.embeddings for step in rounds]),
        "written": spread([step.written for step in rounds]),
        "wall_ms": spread([round(1000 * step.wall_s, 1) for step in rounds]),
        "serial_per_final": spread(finals) | {"mean": round(sum(finals) / max(1, len(finals)), 2)},
        "serial_if_fresh_mean": round(sum(step.answer + 1 for step in whole) / max(1, len(whole)), 2),
        "candidates_and_finals": len(whole),
        "parent_cpu_ms_per_step": round(1000 * measured.cpu_s / len(everyone), 2),
        "rounds_s": round(measured.rounds_s, 1),
        "windows_closed": windows.closed,
        "windows_twice": windows.twice,
        "windows_lifted": windows.lifted,
        "total_prefill": sum(step.prefill for step in total),
        "total_embeddings": sum(step.embeddings for step in total),
        "work": bins(rounds, seconds),
        "everyones_work": bins(everyone, seconds + TAIL_S),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    return {f"p{share}": round(percentile(values, share / 100), 2) for share in (50, 95, 99)} if values else {}


_LINES = ("prefill", "cached", "embeddings", "written", "wall_ms", "serial_per_final")
_PLAIN = (
    "steps",
    "candidates_and_finals",
    "serial_if_fresh_mean",
    "total_prefill",
    "total_embeddings",
    "windows_closed",
    "windows_twice",
    "windows_lifted",
    "parent_cpu_ms_per_step",
    "rounds_s",
)


def print_pair(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """Print what two policies have cost, side by side."""
    print(f"\na step every {ours['cadence_s']} s of audio: p50 / p95 / p99")
    print(f"{'':24}{'ours':>28}{'reference':>28}")
    for key in _LINES:
        cells = [
            " / ".join(f"{row[key].get(share, '-')}" for share in ("p50", "p95", "p99")) for row in (ours, reference)
        ]
        print(f"{key:24}{cells[0]:>28}{cells[1]:>28}")
    for key in _PLAIN:
        print(f"{key:24}{ours[key]:>28}{reference[key]:>28}")
    less = saved(ours, reference)
    print(
        f"over the first {less.seconds:.0f} s: prefill {less.prefill:.1f}, embeddings {less.embeddings:.1f} times less"
    )
    if ours["seconds"] >= 120:
        for what, change in growth(ours["work"]).items():
            print(f"mean over 8 s at 120 s against 40 s: {what} {change:+.1%}")
