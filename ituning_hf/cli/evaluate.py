"""`ituning evaluate`: the evaluation has a command line of its own, which gets its arguments untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    commands.add_parser(
        "evaluate",
        help="caption a data set and score the captions (ituning evaluate --help shows its options)",
    )


def run(arguments: Sequence[str]) -> int:
    """Hand everything to the evaluation, and return its exit code."""
    from ..evaluation.cli import main

    return main(arguments)
