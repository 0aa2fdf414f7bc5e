"""How the commands read their arguments."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Read a positive number, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def natural(text: str) -> int:
    """Read a number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)
