"""Line plots as SVG, for the pages in `docs/`.

Enough for a few lines over a few numbers, with grid, ticks and a legend; nothing that an installed plotting library
would be wanted for. Pure: values in, text out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 52
COLOURS = ("#0b6e99", "#d9480f", "#5f3dc4", "#2b8a3e")
DASHES = ("", "6 4", "2 3", "9 3 2 3")


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of points `(x, y)`."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn."""

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    log_x: bool = False
    """Powers of two."""
    log_y: bool = False
    """Powers of ten."""
    bound: float | None = None
    """A horizontal line."""


def svg(plot: Plot) -> str:
    """Return the plot as a document."""
    xs = [x for line in plot.lines for x, _ in line.points]
    ys = [y for line in plot.lines for _, y in line.points] + ([plot.bound] if plot.bound is not None else [])
    across, up = (
        _Axis(xs, 2 if plot.log_x else 0, LEFT, WIDTH - RIGHT),
        _Axis(ys, 10 if plot.log_y else 0, HEIGHT - BOTTOM, TOP),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f"<title>{escape(plot.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, plot.title, weight="bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, plot.x_title, anchor="middle"),
        _text(LEFT, TOP - 8, plot.y_title),
    ]
    for y in up.ticks:
        at = up.place(y)
        parts += [_rule(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 6, at + 4, f"{y:g}", anchor="end")]
    for x in across.ticks:
        parts += [_text(across.place(x), HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle")]
    if plot.bound is not None:
        at = up.place(plot.bound)
        parts.append(_rule(LEFT, at, WIDTH - RIGHT, at, colour="#868e96", dash="4 4"))
    for number, line in enumerate(plot.lines):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        points = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in line.points)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        at = TOP + 10 + 16 * number
        parts += [
            _rule(LEFT + 12, at, LEFT + 40, at, colour=colour, dash=dash, width=2),
            _text(LEFT + 46, at + 4, line.name),
        ]
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Numbers on a stretch of the page; `base` 0 is linear and begins at nothing."""

    def __init__(self, values: Sequence[float], base: int, begin: float, end: float) -> None:
        self._base = base
        self._begin, self._end = begin, end
        if base:
            first, last = math.floor(math.log(min(values), base)), math.ceil(math.log(max(values), base))
            self.ticks = [float(base) ** power for power in range(first, max(last, first + 1) + 1)]
        else:
            step = _round_step(max(values))
            self.ticks = [step * number for number in range(math.ceil(max(values) / step) + 1)]

    def place(self, value: float) -> float:
        """Return where a value lies on the page."""
        first, last, value = (self._scaled(number) for number in (self.ticks[0], self.ticks[-1], value))
        return self._begin + (value - first) / (last - first) * (self._end - self._begin)

    def _scaled(self, value: float) -> float:
        return math.log(value, self._base) if self._base else value


def _round_step(largest: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that makes four to ten ticks."""
    power = 10.0 ** math.floor(math.log10(largest / 4))
    return next(step * power for step in (1, 2, 5, 10) if largest / (step * power) <= 8)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {where} fill="#212529">{escape(text)}</text>'


def _rule(
    x1: float, y1: float, x2: float, y2: float, *, colour: str = "#dee2e6", dash: str = "", width: int = 1
) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
