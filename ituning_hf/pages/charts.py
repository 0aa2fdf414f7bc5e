"""The geometry of line charts and histograms, which the macros of charts.html.jinja draw as SVG."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LEFT, RIGHT, TOP, BOTTOM = 58, 468, 14, 226  # the edges of the plot, in a picture of 480 x 260
MAX_READINGS = 100  # positions at which hovering shows the values
Points = Sequence[tuple[float, float]]


def round_ticks(low: float, high: float, count: int = 5, smallest: float = 0) -> list[float]:
    """Return about `count` round numbers from `low` or less to `high` or more.

    They are 1, 2 or 5 times a power of ten apart, and at least `smallest`.
    """
    wanted = (high - low or abs(high) or 1) / count
    power = 10.0 ** math.floor(math.log10(wanted))
    step = max(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted), smallest)
    numbers = range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    return [number * step for number in numbers]


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    values: Sequence[float]  # of its ticks

    def __call__(self, value: float) -> float:
        """Return the position of a value, in pixels."""
        share = (value - self.low) / (self.high - self.low or 1)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The positions of the ticks, and their labels."""
        return [(self(x), f"{x:,.10g}") for x in self.values if self.low <= x <= self.high]


def line_chart(title: str, series: Mapping[str, Points], last_step: int) -> dict[str, Any]:
    """Lay out lines over optimizer steps.

    Args:
        title: The title.
        series: By name, points `(step, value)` in the order of their steps; at least one point in all.
        last_step: The end of the horizontal axis.
    """
    values = [value for line in series.values() for _, value in line]
    x = Axis(0, last_step, LEFT, RIGHT, round_ticks(0, last_step, smallest=1))
    y_ticks = round_ticks(min(values), max(values))
    y = Axis(y_ticks[0], y_ticks[-1], BOTTOM, TOP, y_ticks)
    lines = {name: [(x(step), y(value)) for step, value in line] for name, line in series.items()}
    readings: dict[int, dict[str, Any]] = {}
    for name, line in series.items():
        for step, value in line:  # of points that share a position, the last one is shown
            position = int((x(step) - LEFT) / (RIGHT - LEFT) * (MAX_READINGS - 1))
            reading = readings.setdefault(position, {"values": {}})
            reading |= {"x": x(step), "step": f"{step:,.0f}"}
            reading["values"][name] = (f"{value:.4g}", y(value))
    found = [readings[position] for position in sorted(readings)]
    centres = [reading["x"] for reading in found]
    edges = [LEFT, *(sum(pair) / 2 for pair in pairwise(centres)), RIGHT]
    for reading, (start, end) in zip(found, pairwise(edges), strict=True):
        reading |= {"start": start, "width": round(end - start, 2)}
    return {"title": title, "x": x, "y": y, "lines": lines, "readings": found}


def histogram(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Lay out the numbers of values, none negative, in about 20 intervals of equal length."""
    edges = round_ticks(0, max(values) or 1, count=20)
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(bisect(edges, value) - 1, len(counts) - 1)] += 1
    x = Axis(0, edges[-1], LEFT, RIGHT, round_ticks(0, edges[-1]))
    y_ticks = round_ticks(0, max(counts), smallest=1)
    y = Axis(0, y_ticks[-1], BOTTOM, TOP, y_ticks)
    bars = [
        {
            "low": low,
            "high": high,
            "count": count,
            "x": x(low),
            "width": round(x(high) - x(low), 1),
            "y": y(count),
        }
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return {"title": title, "x": x, "y": y, "bars": bars}
