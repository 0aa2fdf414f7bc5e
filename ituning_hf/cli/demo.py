"""`ituning demo`: a captioner of drawn scenes, trained and tried in minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import natural


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "demo",
        help="train and try a captioner of drawn scenes, in minutes, with nothing to download",
        description="Train adapters between two small frozen models on drawn scenes, caption scenes that "
        "they have not seen, save the captioner and load it again. Minutes on two CPU cores; no network.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("ituning-demo"),
        metavar="FOLDER",
        help="gets the captioner, the pictures and a page that shows them (%(default)s)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="another run (%(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo, or go on with it, and return the exit code."""
    from ..demo.story import run_demo
    from ..training.errors import RunStopped

    try:
        result = run_demo(options.output_dir, seed=options.seed)
    except RunStopped as stopped:
        print(f"ituning: {stopped}: the same command goes on", file=sys.stderr)
        return stopped.exit_code
    return 0 if result.same_in_fresh_process else 1
