"""`ituning replay`: where the numbers of a run stopped being finite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_FOLDER = "the run's nonfinite-step-N, or nonfinite-validation-step-N"


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "replay",
        help="look at the batch at which a training stopped with NaN",
        description="Compute once more what a training run saved where its loss or its gradients were no "
        "longer finite. Printed are the loss, the run's to the last bit on the same machine; the first "
        "module whose output is not finite; and the largest magnitude of each weight and gradient. The "
        "folder stays until somebody removes it.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=_FOLDER)
    parser.add_argument(
        "--vision_model", metavar="PLACE", help="where its frozen vision encoder has moved to"
    )
    parser.add_argument("--text_model", metavar="PLACE", help="where its frozen language model has moved to")
    parser.add_argument("--device", help="what computes, such as cpu or cuda (default: as in the run)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compute, print what was found, and return the exit code."""
    from ..training.replay import replay

    replay(options.folder, print, options.device, options.vision_model, options.text_model)
    return 0
