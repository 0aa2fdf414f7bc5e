"""How a setting is read from text, and what makes its value right."""

import math
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.utils.settings.options import AT_LEAST_ONE, EVERY, Kind, check_value, one_of, some_of


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, Kind(int, False, False)),
        (str | None, Kind(str, False, True)),
        (list[str], Kind(str, True, False)),
        (list[int] | None, Kind(int, True, True)),
    ],
)
def test_a_type_is_taken_apart(hint: Any, expected: Kind):
    assert Kind.of(hint) == expected


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (float, "5e-4", 5e-4),
        (int | None, "12", 12),
        (bool, "True", True),
        (bool, "no", False),
        (str, "no", "no"),
        (list[str], "flip", ["flip"]),
        (list[str], ["none"], []),
        (list[int] | None, ["0", "-1"], [0, -1]),
    ],
)
def test_text_is_read_by_the_declared_type(hint: Any, text: Any, value: Any):
    parsed = Kind.of(hint).parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("hint", "text"),
    [(int, "1.5"), (float, "fast"), (bool, "1"), (int, ["1"]), (list[int], {"a": "1"}), (list[str], [["a"]])],
)
def test_text_of_another_type_is_refused(hint: Any, text: Any):
    with pytest.raises(ValueError):  # noqa: PT011  (who calls it words the error)
        Kind.of(hint).parse(text)


def test_a_whole_number_is_a_number_and_a_truth_value_is_none():
    assert Kind.of(float).holds(3)
    assert not Kind.of(int).holds(3.0)
    assert not Kind.of(float).holds(True)
    assert not Kind.of(int).holds(True)
    assert not Kind.of(bool).holds(1)
    assert Kind.of(int | None).holds(None)
    assert not Kind.of(int).holds(None)


def test_paths_and_lone_texts_of_python_callers_are_adapted():
    assert Kind.of(str | None).adapt(Path("a") / "b") == str(Path("a") / "b")
    assert Kind.of(list[str]).adapt("wandb") == ["wandb"]
    assert Kind.of(list[str]).adapt(("crop", "flip")) == ["crop", "flip"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_nan_or_infinite(value: float):
    with pytest.raises(ValueError, match=f"--rate is {value}, expected a finite number"):
        check_value("rate", value, Kind.of(float), AT_LEAST_ONE)


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (EVERY, ["epoch", "1", "500"], ["0", "-1", "1.5", "often", ""]),
        (one_of(("a", "b")), ["a"], ["c", ""]),
        (some_of(("a", "b")), [[], ["b"], ["b", "a"]], [["a", "a"], ["c"], ["a", "c"]]),
    ],
)
def test_rules(rule: Any, right: list, wrong: list):
    assert [rule.holds(value) for value in right] == [True] * len(right)
    assert [rule.holds(value) for value in wrong] == [False] * len(wrong)
