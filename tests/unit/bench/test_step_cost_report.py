"""What is concluded from the rows of `step_cost.py`, and the plot."""

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from _plot import Line, Plot, svg
from _step_cost_report import growth, saved
from _step_cost_rows import Measured, row_of
from _work import Encoded, RequestCount, StepCount


def row(seconds: float, work: list[tuple[int, int]], finish: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "work": work,
        "total_prefill": sum(part[0] for part in work) + finish[0],
        "total_embeddings": sum(part[1] for part in work) + finish[1],
    }


def test_whole_streams_are_compared_with_their_end() -> None:
    less = saved(row(4, [(10, 5), (10, 5)], finish=(20, 10)), row(4, [(100, 20), (300, 60)]))
    assert (less.seconds, less.prefill, less.embeddings) == (4, 10, 4)


def test_a_shorter_reference_is_compared_over_what_both_heard() -> None:
    less = saved(row(6, [(10, 5), (10, 5), (999, 999)], finish=(20, 10)), row(4, [(100, 20), (300, 60)]))
    assert (less.seconds, less.prefill, less.embeddings) == (4, 20, 8)


def test_growth_is_between_40_and_120_s() -> None:
    work = [(100, 100)] * 60
    work[16:20] = [(200, 50)] * 4
    work[56:60] = [(220, 50)] * 4
    assert growth(work) == {"prefill": pytest.approx(0.1), "embeddings": 0}


@pytest.mark.parametrize("log", [False, True])
def test_a_plot_is_a_document_with_every_line_inside(log: bool) -> None:
    plot = Plot("a < b", "x", "y", [Line("one", [(1, 3), (64, 900)]), Line("two", [(1, 40)])], log, log, bound=50)
    root = ET.fromstring(svg(plot))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    places = [tuple(map(float, point.split(","))) for line in lines for point in line.attrib["points"].split()]
    assert len(places) == 3
    assert all(0 < x < 720 and 0 < y < 360 for x, y in places)
    assert places[1][1] < places[2][1] < places[0][1], "larger is higher"


def step(session: int, kind: str, at_s: float, *, written: int = 4) -> StepCount:
    name = f"{session}-{kind}-{at_s}"
    return StepCount(session, kind, at_s, 0.1, {name: RequestCount(100, 30, written)}, 26, answer=12)


def test_the_end_of_the_stream_counts_in_its_sums_and_not_in_its_course() -> None:
    steps = [step(0, "partial", 2.0), step(1, "partial", 4.0), step(0, "candidate", 3.0), step(0, "partial", 4.0)]
    finish = step(0, "final", 4.0, written=1)
    encoded = [Encoded("0-partial-2.0", "a/0/0.5", 104), Encoded("1-partial-4.0", "a/0/0.5", 104)]
    found = row_of(Measured([*steps, finish], encoded, cpu_s=0.02, rounds_s=3), "ours", 2.0, 4.0)
    assert (found["steps"], found["all_steps"], found["candidates_and_finals"]) == (3, 4, 2)
    assert (found["total_prefill"], found["total_embeddings"]) == (4 * 70, 4 * 26)
    assert found["work"] == [(70, 26), (140, 52)]
    assert found["everyones_work"][:2] == [(70, 26), (210, 78)]
    assert found["prefill"] == {"p50": 70, "p95": 70, "p99": 70}
    assert found["serial_per_final"]["mean"] == 2.5
    assert found["serial_if_fresh_mean"] == 13
    assert found["parent_cpu_ms_per_step"] == 5
    assert (found["windows_closed"], found["windows_twice"]) == (1, 1)
