"""How cost grows along one axis, and a plot of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .report import Report, Row
from .rounds import Timings


def grow(axis: str, values: Sequence[Any], measure_at: Callable[[Any], Timings]) -> list[Row]:
    """Measure at each value of an axis.

    Args:
        axis: Its name, the first column's.
        values: From small to large.
        measure_at: Times the ways at one value.

    Returns:
        A row for each value: the value, and each way's median seconds.
    """
    rows = []
    for value in values:
        timings = measure_at(value)
        rows.append({axis: value, **{way: timings.median(way) for way in timings.seconds}})
    return rows


def ratios(rows: Sequence[Row], over: str) -> list[Row]:
    """Divide the seconds of `grow` by those of one way."""
    axis = next(iter(rows[0]))
    return [
        {column: value if column == axis else value / row[over] for column, value in row.items()}
        for row in rows
    ]


def draw(report: Report, table: str, path: Path) -> None:
    """Plot a table of `grow`, of a report that was just made or was loaded again.

    Args:
        report: The report.
        table: The table's name, which becomes the plot's title.
        path: An image file, .svg or .png.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_type = _figure_type()
    rows = report.tables[table]
    axis, *ways = rows[0]
    values = [row[axis] for row in rows]
    figure = figure_type(figsize=(7, 4.5), layout="constrained")
    plot = figure.subplots()
    for way in ways:
        plot.plot(values, [row[way] for row in rows], marker="o", label=way)
    # A doubling axis such as a batch's is read in factors, another one in differences from nought.
    if not isinstance(values[0], str) and values[-1] >= 16 * values[0]:
        plot.set(xscale="log", yscale="log")
        plot.set_xticks([], minor=True)  # but keep those of seconds: they may span less than a decade
    else:
        plot.set_ylim(bottom=0)
    plot.set_xticks(values, [str(value) for value in values])
    plot.set(xlabel=axis, ylabel="seconds", title=table)
    plot.grid(alpha=0.3)
    plot.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def check_can_draw() -> None:
    """Raise `ImportError` before anything is measured that could not be drawn."""
    _figure_type()


def _figure_type() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'ituning_hf[viz]'.") from error
    return Figure
