"""Table and plots of `step_cost.py`: how the cost of a step grows, and how much less is computed.

Reads rows of results; writes `docs/benchmarks.md` between its marks and SVG files beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _plot import Line, Plot, svg
from _report import PAGE, ran_on, write_table
from _work import BIN_S, SPAN_S, mean_before

Row = dict[str, Any]

_NAMES = {"ours": "ours", "reference": "one growing item (reference)"}


@dataclass(frozen=True, slots=True)
class Saved:
    """How many times less one policy computes than another."""

    seconds: float
    """Audio from the start over which both are compared."""
    prefill: float
    embeddings: float


def saved(ours: Row, reference: Row) -> Saved:
    """Compare two policies over the audio that both have heard.

    The end of the stream, a final of ours, belongs to it where both have heard all of it.
    """
    seconds = min(ours["seconds"], reference["seconds"])
    whole = ours["seconds"] == reference["seconds"]
    ratios = []
    for which, total in enumerate(("total_prefill", "total_embeddings")):
        sums = [row[total] if whole else _upto(row["work"], seconds, which) for row in (reference, ours)]
        ratios.append(sums[0] / sums[1])
    return Saved(seconds, *ratios)


def growth(work: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return by what share the mean over 8 s has changed between 40 s and 120 s."""
    found = {}
    for which, what in enumerate(("prefill", "embeddings")):
        early, late = (mean_before(work, at_s, which) for at_s in (40, 120))
        found[what] = late / early - 1
    return found


def write_report(runs: Sequence[Sequence[Row]]) -> None:
    """Write the page's part and a plot for each run: a run is a shape's rows, ours and the reference's in turn."""
    lines: list[str] = []
    for rows in runs:
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        shape = rows[0]["shape"]
        lines += ["", f"### {_shape_name(shape)}", "", ran_on(rows[0]), "", _settings(rows[0]), "", *_table(pairs), ""]
        lines += [_sentence(*pair) for pair in pairs]
        name = f"step-cost-{shape}.svg"
        PAGE.with_name(name).write_text(svg(_plot(pairs, shape)), encoding="utf-8")
        lines += ["", f"![Prefill tokens for each second of audio, by how long somebody has spoken]({name})"]
    write_table("step-cost", lines[1:])


def _upto(work: Sequence[Sequence[int]], seconds: float, which: int) -> int:
    return sum(part[which] for part in work[: round(seconds / BIN_S)])


def _shape_name(shape: str) -> str:
    return "The trained tiny checkpoint" if shape == "tiny" else f"Random weights of the full {shape} shape"


def _settings(row: Row) -> str:
    text = f"{row['others']} sessions beside the measured one, a step of each every {row['others_every_s']:g} s;"
    text += f" {row['dtype']}."
    if row["tokens_per_s"]:
        text += (
            " Random weights write nothing that could be gone on from: vLLM computes every request, and the text is"
            f" taken from a script of {row['tokens_per_s']:g} tokens a second, in which every draft is right. Serial"
            " steps therefore say nothing here."
        )
    return text + (f" {row['note'][:1].upper()}{row['note'][1:]}." if row["note"] else "")


_COLUMNS = ("prefill", "cached", "embeddings", "wall_ms")


def _table(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    head = [
        "a step every", "policy", "audio", "prefill tokens", "cached tokens", "embeddings", "wall time ms",
        "serial steps of a final", "parent CPU ms", "windows twice",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in (row for pair in pairs for row in pair):
        cells = [f"{row['cadence_s']:g} s", _NAMES[row["policy"]], f"{row['seconds']:g} s"]
        cells += [" / ".join(f"{row[key][share]:g}" for share in ("p50", "p95", "p99")) for key in _COLUMNS]
        ours = row["policy"] == "ours"
        finals = row["serial_per_final"]
        cells.append(
            f"{finals['mean']:g}, p95 {finals['p95']:g} ({row['serial_if_fresh_mean']:g} from nothing)"
            if ours and not row["tokens_per_s"]
            else "–"
        )
        cells += [
            f"{row['parent_cpu_ms_per_step']:g}",
            f"{row['windows_twice']} of {row['windows_closed']}" if ours else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _sentence(ours: Row, reference: Row) -> str:
    less = saved(ours, reference)
    text = (
        f"- A step every {ours['cadence_s']:g} s: over {less.seconds:g} s of speech **{less.prefill:.1f} times** fewer"
        f" prefill tokens and **{less.embeddings:.1f} times** fewer embeddings than the reference."
    )
    if ours["seconds"] >= 120:
        one, everyone = growth(ours["work"]), growth(ours["everyones_work"])
        text += (
            f" Mean over the {SPAN_S:g} s before 120 s against 40 s: prefill {one['prefill']:+.0%}, embeddings"
            f" {one['embeddings']:+.0%} in this session; {everyone['prefill']:+.0%} and {everyone['embeddings']:+.0%}"
            f" over all {ours['others'] + 1} sessions."
        )
    if ours["windows_lifted"]:
        text += f" {ours['windows_lifted']} closed windows were encoded again because something louder came later."
    return text


def _plot(pairs: Sequence[tuple[Row, Row]], shape: str) -> Plot:
    lines = []
    for row in (row for pair in pairs for row in pair):
        ends = [BIN_S * number for number in range(round(SPAN_S / BIN_S), len(row["work"]) + 1)]
        points = [(end, mean_before(row["work"], end, 0)) for end in ends]
        lines.append(Line(f"{_NAMES[row['policy']]}, every {row['cadence_s']:g} s", points))
    return Plot(
        f"Prefill by how long somebody has spoken ({'tiny checkpoint' if shape == 'tiny' else shape + ' shape'})",
        "seconds since the speech began",
        "prefill tokens for each second of audio, mean of 8 s",
        lines,
        log_y=True,
    )
