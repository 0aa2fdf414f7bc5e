"""`ituning train`: train a captioner."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..training.arguments import TrainArguments
from ..utils.settings import read_settings

_DESCRIPTION = """\
Train an image captioner: small adapters between a frozen vision encoder and
a frozen language model. Only the adapters are trained and saved. Without
options, it trains on synthetic scenes."""
_EXAMPLES = """\
examples:
  ituning train --dataset photos/ --output_dir outputs/mine --dry_run
  ituning train --config run.yaml --learning_rate 1e-4
  ituning train --config run.yaml --resume_from_checkpoint latest
  accelerate launch -m ituning_hf.cli train --config run.yaml  # several GPUs

Exit code: 0; 1 if the run failed, such as on a full disk; 2 for an error in
the settings or the data; 129, 130 or 143 if it was stopped by SIGHUP, Ctrl-C or
SIGTERM, after saving a checkpoint.
"""


def parse_arguments(argv: Sequence[str]) -> TrainArguments:
    """Read the settings of a run."""
    return read_settings(TrainArguments, argv, "ituning train", _DESCRIPTION, _EXAMPLES)


def run(argv: Sequence[str]) -> int:
    """Train, and return the exit code.

    A run can be stopped at any time. The same command with `--resume_from_checkpoint latest` resumes it; that
    flag may be given from the beginning. After SIGTERM or Ctrl-C the run finishes its optimizer step (and the
    validation that follows it) and saves a checkpoint. A second Ctrl-C ends it at once.

    Signals must reach the training process itself. `torchrun` forwards them, and kills the process 30 seconds
    later; `accelerate launch` does not forward them, so the signal must go to the process group.
    """
    args = parse_arguments(argv)
    from ..training.errors import RunStopped
    from ..training.run import train
    from ..utils.distributed import command_process

    try:
        with command_process():
            train(args)
    except RunStopped as stopped:
        if int(os.environ.get("RANK", "0")) == 0:
            flag = "" if args.resume_from_checkpoint == "latest" else " with --resume_from_checkpoint latest"
            advice = "" if args.dry_run else f": run the same command{flag} to resume"
            print(f"ituning: {stopped}{advice}", file=sys.stderr)
        return stopped.exit_code
    return 0
