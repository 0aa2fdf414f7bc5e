"""The geometry of line charts and histograms, by hand."""

import pytest

from ituning_hf.pages import charts


@pytest.mark.parametrize(
    ("low", "high", "options", "expected"),
    [
        (0, 10, {}, [0, 2, 4, 6, 8, 10]),
        (0.57, 2.31, {}, [0.5, 1, 1.5, 2, 2.5]),
        (0, 3e-4, {}, [0, 1e-4, 2e-4, 3e-4]),
        (0, 3, {"smallest": 1}, [0, 1, 2, 3]),
        (0, 485, {"count": 20}, [*range(0, 501, 50)]),
        (-3, 4, {}, [-4, -2, 0, 2, 4]),
        (7, 7, {}, [6, 8]),
        (0, 0, {}, [0]),
    ],
)
def test_round_ticks(low: float, high: float, options: dict, expected: list[float]):
    assert charts.round_ticks(low, high, **options) == pytest.approx(expected)


def test_line_chart():
    chart = charts.line_chart(
        "loss", {"training": [(1, 4.0), (2, 2.0)], "validation": [(0, 3.0), (2, 1.0)]}, 2
    )
    assert chart["x"].ticks == [(58, "0"), (263, "1"), (468, "2")]
    assert chart["y"].ticks[0] == (226, "1")
    assert chart["y"].ticks[-1] == (14, "4")
    assert chart["lines"] == {
        "training": [(263, 14), (468, 155.3)],
        "validation": [(58, 84.7), (468, 226)],
    }
    readings = [(reading["step"], reading["start"], reading["values"]) for reading in chart["readings"]]
    assert readings == [
        ("0", 58, {"validation": ("3", 84.7)}),
        ("1", 160.5, {"training": ("4", 14)}),
        ("2", 365.5, {"training": ("2", 155.3), "validation": ("1", 226)}),
    ]


def test_a_long_line_has_few_readings():
    chart = charts.line_chart("loss", {"training": [(step, step % 7) for step in range(1001)]}, 1000)
    assert len(chart["lines"]["training"]) == 1001
    assert len(chart["readings"]) == 100
    assert sum(reading["width"] for reading in chart["readings"]) == pytest.approx(410, abs=0.5)


@pytest.mark.parametrize("values", [[0.0], [0, 3, 10, 20, 20, 199.9, 200]])
def test_histogram(values: list[float]):
    bars = charts.histogram("CIDEr", values)["bars"]
    expected = {0: 1} if len(values) == 1 else {0: 2, 10: 1, 20: 2, 190: 2}  # the last interval is closed
    assert {round(bar["low"], 9): bar["count"] for bar in bars if bar["count"]} == expected
