"""What is concluded from the rows of `step_cost.py`, and the plot."""

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from _plot import Line, Plot, svg
from _step_cost_report import growth, saved


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
