"""`ituning train`: the trainer has a command line of its own, which gets its arguments untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    commands.add_parser("train", help="train a captioner (ituning train --help shows its options)")


def run(arguments: Sequence[str]) -> int:
    """Hand everything to the trainer, and return its exit code."""
    from ..training.cli import main

    return main(arguments)
