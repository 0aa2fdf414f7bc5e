"""`ituning train`: a run from the command line to the captioner on disk."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from transformers.utils import logging as transformers_logging

from .arguments import TrainArguments
from .checkpoints import claim_output_dir, release_output_dir
from .command_line import parse_arguments
from .dry_run import dry_run
from .errors import TrainingError
from .launching import refuse_unsupported_launch
from .loop import CaptionTrainer
from .setup import describe_run, load_data, load_model
from .state import TrainState
from .tracking import require_trackers
from .validation import SCORE_NAMES, require_scorers


def main(argv: Sequence[str] | None = None) -> int:
    """Train by command line.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` by default.

    Returns:
        0. What goes wrong is raised.
    """
    args = parse_arguments(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    train(args)
    return 0


def create_accelerator(args: TrainArguments) -> Accelerator:
    """Return an accelerator over all the processes that were launched.

    Under `torchrun` on a machine without a GPU, Accelerate lets each process believe that it is alone,
    unless it is told to stay on the CPU.

    Raises:
        ValueError: if it was launched for something that the training loop does not do.
        TrainingError: if it still sees fewer processes than there are; each would train on everything and
            write over the others.
    """
    refuse_unsupported_launch(os.environ)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = launched > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=cpu,
        log_with=args.report_to or None,
        project_dir=os.path.join(args.output_dir, "tensorboard"),
    )
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched and Accelerate sees {accelerator.num_processes}: start "
            "them with `accelerate launch` or `torchrun`."
        )
    return accelerator


def train(args: TrainArguments) -> TrainState:
    """Train a captioner as the settings say.

    Args:
        args: The settings.

    Returns:
        How far it came and the best validation; the captioners are in `args.output_dir`, "best" and
        "last".

    Raises:
        ValueError, OSError: for settings, data or backbones that cannot be used, before long work starts.
        NonFiniteLossError: at a NaN or infinite loss.
        TooManyUnreadableError: if too many images cannot be read.
    """
    require_trackers(args.report_to)
    if args.eval_caption_images:
        require_scorers()
    accelerator = create_accelerator(args)

    def report(text: str) -> None:
        accelerator.print(text, flush=True)

    output_dir = Path(args.output_dir)
    data = load_data(args)
    if args.dry_run:
        return dry_run(args, data, accelerator, report)
    if accelerator.is_main_process:
        claim_output_dir(output_dir, args.resume_from_checkpoint, args.to_dict())
    accelerator.wait_for_everyone()
    try:
        set_seed(args.seed)  # the adapters' first weights: the same on every process
        model, processor = load_model(args, data, accelerator, report)
        for line in describe_run(model, processor, data, args):
            report(line)
        trainer = CaptionTrainer(args, model, processor, data, accelerator)
        state = trainer.train()
    except BaseException:
        if accelerator.is_main_process:
            release_output_dir(output_dir)
        raise
    for line in describe_result(trainer, output_dir):
        report(line)
    accelerator.end_training()
    return state


def describe_result(trainer: CaptionTrainer, output_dir: Path) -> list[str]:
    """Say what came of a run, a line each; every process must call it."""
    state, lines = trainer.state, []
    unreadable = len(set(gather_object(sorted(trainer.skipped.problems))))
    if unreadable:
        lines.append(f"Skipped    {unreadable:,} images that could not be read")
    if state.best_metric is not None:
        metric = SCORE_NAMES[trainer.args.metric_for_best_model]
        reached = f"validation {metric} {state.best_metric:.4f}, step {state.best_step}"
        lines.append(f"Best       {output_dir / 'best'}  ({reached})")
    return [*lines, f"Last       {output_dir / 'last'}  (step {state.step})"]
