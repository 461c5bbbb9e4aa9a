"""Curves: smoothed, as a row of bars for a terminal, and as the lines, ticks and coordinates of a drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
"""of a curve: (step, value), in the order of the steps"""

BARS = "▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 720, 290
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 44
"""margins around the plot, in the drawing's units; the numbers of the axes stand in them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A number at an axis."""

    at: float
    """in the drawing's units"""
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A line chart in a box of WIDTH x HEIGHT units, y growing downwards."""

    lines: tuple[tuple[tuple[float, float], ...], ...]
    """for each curve its (x, y); a curve without points stays empty, so that the others keep their colours"""
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


def means(points: Points, width: int) -> list[tuple[float, float]]:
    """Means over `width` steps each, at the last of them.

    >>> means([(1, 4.0), (2, 2.0), (3, 1.0)], 2)
    [(2, 3.0), (3, 1.0)]
    """
    buckets: dict[int, list[tuple[float, float]]] = {}
    for step, value in points:
        buckets.setdefault(math.ceil(step / width), []).append((step, value))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in buckets.values()]


def span(curves: Sequence[Points]) -> tuple[float, float, float, float] | None:
    """The first and last step, the lowest and highest value over all curves; None when there is no point."""
    steps, values = [s for curve in curves for s, _ in curve], [v for curve in curves for _, v in curve]
    return (min(steps), max(steps), min(values), max(values)) if steps else None


def sparkline(points: Points, columns: int, *, last: float, low: float, high: float) -> str:
    """A bar for each of `columns` equal stretches of the steps up to `last`; stretches without a point repeat
    the bar before.

    >>> sparkline([(1, 8.0), (2, 4.0), (4, 1.0)], 4, last=4, low=1.0, high=8.0)
    '█▄▄▁'
    """
    parts: list[list[float]] = [[] for _ in range(columns)]
    for step, value in points:
        parts[max(0, math.ceil(step / last * columns) - 1)].append(value)
    bars = ""
    for part in parts:
        if part and high > low:
            bars += BARS[min(len(BARS) - 1, int((sum(part) / len(part) - low) / (high - low) * len(BARS)))]
        elif part:
            bars += BARS[3]
        else:
            bars += bars[-1:] or " "
    ends = max((i for i, part in enumerate(parts) if part), default=-1)
    return bars[: ends + 1]


def draw(curves: Sequence[Points]) -> Chart | None:
    """All curves on one pair of linear axes; None when there is no point."""
    box = span(curves)
    if box is None:
        return None
    first, last, low, high = box
    first, last = (first, last) if last > first else (first - 0.5, last + 0.5)
    room = 0.05 * (high - low if high - low > 1e-9 * abs(high) else abs(high) or 1.0)
    low, high = low - room, high + room

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    return Chart(
        lines=tuple(
            tuple((round(x(step), 2), round(y(value), 2)) for step, value in curve) for curve in curves
        ),
        x=tuple(
            Tick(at=round(x(number), 2), label=label) for number, label in ticks(first, last, whole=True)
        ),
        y=tuple(Tick(at=round(y(number), 2), label=label) for number, label in ticks(low, high)),
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[tuple[float, str]]:
    """Two to eight round numbers from `low` to `high` and how they are written; `whole` has no fractions.

    They are multiples of 1, 2 or 5 times a power of ten.

    >>> [label for _, label in ticks(0.93, 2.21)]
    ['1.0', '1.2', '1.4', '1.6', '1.8', '2.0', '2.2']
    """
    least = math.floor(math.log10((high - low) / 5))
    apart, power = next(
        (n * 10.0**p, p) for p in (least, least + 1) for n in (1, 2, 5) if (high - low) / (n * 10.0**p) <= 7
    )
    if whole and power < 0:
        apart, power = 1.0, 0
    numbers = [i * apart for i in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]
    return [(number, f"{number:,.{max(0, -power)}f}") for number in numbers]
