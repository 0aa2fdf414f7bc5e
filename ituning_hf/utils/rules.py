"""Validation rules for the values of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a setting's value.

    Args:
        expected: Its description, for the error message.
        holds: Whether a value meets it.
        metavar: The name of the value in the help; None for the name of its type.
    """

    expected: str
    holds: Callable[[Any], bool]
    metavar: str | None = None


def _text(metavar: str) -> Rule:
    return Rule("a non-empty string", lambda text: text.strip() != "", metavar)


ANY = Rule("anything", lambda value: True)
TEXT = Rule("text", lambda value: True, "TEXT")  # taken literally: neither "none" nor "~" has a meaning
MODEL, FOLDER, FILE, NAME = map(_text, ("MODEL", "FOLDER", "FILE", "NAME"))
AT_LEAST_ONE = Rule("at least 1", lambda number: number >= 1)
NOT_NEGATIVE = Rule("at least 0", lambda number: number >= 0)
NOT_NEGATIVE_EACH = Rule("numbers, each at least 0", lambda numbers: all(number >= 0 for number in numbers))
POSITIVE = Rule("more than 0", lambda number: number > 0)
SHARE = Rule("0 to 1", lambda number: 0 <= number <= 1)
BELOW_ONE = Rule("0 to 1, 1 excluded", lambda number: 0 <= number < 1)
BETWEEN_0_AND_1 = Rule("more than 0 and less than 1", lambda number: 0 < number < 1)
CAPTION_LENGTH = Rule("at least 3", lambda tokens: tokens >= 3)  # BOS, a token, EOS
SEED = Rule("0 to 2147483647", lambda seed: 0 <= seed < 2**31)
EVERY = Rule(
    "'epoch' or a number of steps, at least 1",
    lambda text: text == "epoch" or (text.isdecimal() and int(text) >= 1),
    "INT|epoch",
)

MIXED_PRECISIONS = ("no", "bf16", "fp16")  # as Accelerate names them


def one_of(choices: Sequence[str]) -> Rule:
    """Return the rule of a setting that is one of a few words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices, "|".join(choices))


def some_of(choices: Sequence[str]) -> Rule:
    """Return the rule of a list of some of a few words, each at most once."""
    return Rule(
        f"none, or any of {', '.join(choices)}, each once",
        lambda values: set(values) <= set(choices) and len(set(values)) == len(values),
        "|".join(choices),
    )
