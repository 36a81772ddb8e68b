"""Table and plot of `streaming.py`.

Reads rows of results; writes `docs/benchmarks.md` between its marks and an SVG file beside it.
"""

from collections.abc import Sequence
from typing import Any

from _plot import Line, Plot, svg
from _report import PAGE, ran_on, write_table

Row = dict[str, Any]

BOUND_MS = 50.0
"""Of the final after the endpoint, at p95."""

_NAMES = {
    "ours": "this server, engine `vllm`",
    "locked": "this server, locked engine",
    "vllm realtime": "vLLM's `/v1/realtime`",
}
_TIMES = ("first_partial", "partial_interval", "final_after_speech", "final_after_endpoint")
_HEAD = (
    "server", "N", "first partial", "partial interval", "final after last speech", "after the endpoint", "finals",
    "late p99", "void",
)  # fmt: skip
_PLOT = "streaming.svg"


def knee(rows: Sequence[Row]) -> int:
    """Return the largest number of sessions up to which every run keeps the bound; 0 for none."""
    kept = 0
    for row in sorted(rows, key=lambda row: row["sessions"]):
        if row["void"] or row["final_after_endpoint"]["p95"] >= BOUND_MS:
            break
        kept = row["sessions"]
    return kept


def write_report(rows: Sequence[Row]) -> None:
    """Write the page's part and the plot."""
    first = rows[0]
    ours = [row for row in rows if row["server"] == "ours"]
    lines = [
        ran_on(first),
        "",
        f"Runs of {first['seconds']:g} s, `silence_duration_ms` {first['silence_ms']}."
        + (f" {first['note'][:1].upper()}{first['note'][1:]}." if first["note"] else "")
        + f" Final after the endpoint with p95 under {BOUND_MS:g} ms: up to **{knee(ours)} sessions**.",
        "",
        "Times in ms, p50 / p95 / p99.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|" + "---|" * len(_HEAD),
    ]
    for row in rows:
        cells = [_NAMES[row["server"]], str(row["sessions"])]
        cells += [" / ".join(f"{row[key].get(share, '–')}" for share in ("p50", "p95", "p99")) for key in _TIMES]
        cells += [str(row["final_after_endpoint"]["samples"]), str(row["late_p99_ms"]), row["void"] or "–"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"![Final after the endpoint, p95, by number of sessions]({_PLOT})"]
    PAGE.with_name(_PLOT).write_text(svg(_plot(rows)), encoding="utf-8")
    write_table("streaming", lines)


def _plot(rows: Sequence[Row]) -> Plot:
    names = dict.fromkeys(row["server"] for row in rows)
    lines = []
    for name in names:
        points = [
            (row["sessions"], row["final_after_endpoint"]["p95"])
            for row in rows
            if row["server"] == name and not row["void"]
        ]
        if points:
            lines.append(Line(_NAMES[name].replace("`", ""), points))
    return Plot(
        "How long after the endpoint the final comes",
        "sessions that speak at once",
        "p95, ms; the dashed line is the bound",
        lines,
        log_x=True,
        log_y=True,
        bound=BOUND_MS,
    )
