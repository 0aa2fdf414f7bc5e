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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps prose to the terminal, and keeps paragraphs with indented lines, the examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = argparse.HelpFormatter._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n  " in p else fill(self, p, width, indent) for p in paragraphs)
