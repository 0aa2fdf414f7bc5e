"""`ituning info`: what a saved captioner is."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "info",
        help="say what a saved captioner is",
        description="Say what a saved captioner is, without loading it.",
    )
    parser.add_argument("model", metavar="MODEL", help="a captioner's folder or Hub id")
    parser.add_argument("--revision", help="its revision on the Hub")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the captioner is, and return the exit code."""
    from ..hub.inspection import describe
    from .description import format_description

    description = describe(options.model, revision=options.revision)
    print(json.dumps(description, indent=2) if options.json else format_description(description))
    return 0
