"""`ituning demo`: train and try a captioner of synthetic scenes in minutes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.rules import FOLDER, SEED
from ..utils.settings import Settings, option, read_settings
from ..utils.terminal import quiet_transformers

_DESCRIPTION = """\
Train adapters between two small frozen models on synthetic scenes, caption
held-out scenes, save the captioner and load it again. This takes minutes on two
CPU cores and needs no network access."""


@dataclass
class DemoArguments(Settings):
    """The settings of `ituning demo`."""

    output_dir: str = option(
        "ituning-demo", "folder for the captioner, the images and a page that shows them", FOLDER
    )
    seed: int = option(0, "seed of the scenes and of the training", SEED)


def run(argv: Sequence[str]) -> int:
    """Run or resume the demo, and return the exit code."""
    args = read_settings(DemoArguments, argv, "ituning demo", _DESCRIPTION)
    quiet_transformers()
    from ..demo.story import run_demo
    from ..training.errors import RunStopped

    try:
        result = run_demo(Path(args.output_dir), seed=args.seed)
    except RunStopped as stopped:
        print(f"ituning: {stopped}: run the same command to resume", file=sys.stderr)
        return stopped.exit_code
    return 0 if result.same_in_fresh_process else 1
