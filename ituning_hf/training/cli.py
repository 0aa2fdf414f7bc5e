"""`ituning train`: a run from the command line to the captioner on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ..utils.determinism import full_determinism
from ..utils.distributed import OtherProcessError, command_process, create_accelerator, leave_group, one_fate
from .arguments import TrainArguments
from .command_line import parse_arguments
from .dry_run import dry_run
from .errors import RunStopped
from .loop import CaptionTrainer
from .run_folder import claim_output_dir
from .setup import (
    GIVEN_DATA,
    TrainingData,
    describe_run,
    describe_steps,
    load_data,
    load_model,
    with_backbones,
    with_features,
)
from .signals import stop_on_signals
from .state import TrainState
from .tracking import require_trackers
from .validation import SCORE_NAMES, require_scorers


def main(argv: Sequence[str] | None = None) -> int:
    """Train by command line.

    A run can be ended at any time, and goes on by the same command with `--resume_from_checkpoint latest`.
    That flag may be there from the beginning: a command that a scheduler repeats until it ends with 0
    starts the run, goes on with it, and does nothing more when it is complete. A run that was killed goes on
    from its newest checkpoint; after SIGTERM or Ctrl-C it finishes its optimizer step (and the validation
    that follows it) and saves one first. A second Ctrl-C ends it at once.

    Signals must reach the training process itself. `torchrun` passes them on, and kills what is still there
    30 seconds later; `accelerate launch` does not, so that the signal must go to the process group.

    The exit codes, which are those of `ituning train`:

    - 0: the run is complete.
    - 1: it failed on its way, with a `TrainingError`: the loss became NaN, too many images cannot be read,
      the disk is full. Its checkpoints are whole.
    - 2: it could not begin: a mistake in the settings, data or backbones that cannot be used, a folder that
      holds another run or in which one is at work.
    - 129, 130, 143: it was stopped by SIGHUP (a terminal that was closed), by Ctrl-C, by SIGTERM.

    Each comes with one line on standard error that says what happened and what to do.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit code, where the message was printed or is another process's to print. Other errors are
        raised.
    """
    args = parse_arguments(argv)
    try:
        with command_process():
            train(args)
    except OtherProcessError as error:
        return error.exit_code
    except RunStopped as stopped:
        if int(os.environ.get("RANK", "0")) == 0:
            flag = "" if args.resume_from_checkpoint == "latest" else " with --resume_from_checkpoint latest"
            print(f"ituning: {stopped}: go on by the same command{flag}", file=sys.stderr)  # noqa: T201
        return stopped.exit_code
    return 0


def train(args: TrainArguments, data: TrainingData | None = None) -> TrainState:
    """Train a captioner as the settings say.

    Args:
        args: The settings.
        data: The images; by default what the settings name.

    Returns:
        How far it came and the best validation; the captioners are in `args.output_dir`, "best" and
        "last".

    Raises:
        ValueError, OSError: for settings, data or backbones that cannot be used, before long work starts.
        NonFiniteLossError: at a NaN or infinite loss or gradient.
        TooManyUnreadableError: if too many images cannot be read.
        TrainingError: if a checkpoint, a captioner or the log cannot be written.
        RunStopped: after SIGTERM or Ctrl-C; a KeyboardInterrupt.
    """
    require_trackers(args.report_to)
    if args.eval_caption_images:
        require_scorers(args.metric_for_best_model)
    args = with_backbones(args)
    if data is not None:
        args = replace(args, dataset=GIVEN_DATA)
    with full_determinism(args.full_determinism, args.seed):
        return _train(args, data)


def _train(args: TrainArguments, data: TrainingData | None) -> TrainState:
    accelerator = create_accelerator(
        args.mixed_precision,
        log_with=args.report_to or None,
        project_dir=os.path.join(args.output_dir, "tensorboard"),
    )

    def report(text: str) -> None:
        with suppress(OSError):  # whoever read it has gone; the run goes on
            accelerator.print(text, flush=True)

    with stop_on_signals() as stop:
        with one_fate(accelerator):
            data = with_features(args, data or load_data(args))
        if args.dry_run:
            return dry_run(args, data, accelerator, report)
        with _claimed(accelerator, args) as checkpoint:
            if args.resume_from_checkpoint is not None and checkpoint is None:
                report("There is no checkpoint to resume from yet: the run starts from the beginning.")
            args = replace(args, resume_from_checkpoint=checkpoint)
            set_seed(args.seed)  # the adapters' first weights: the same on every process
            model, processor = load_model(args, data, accelerator, report)
            for line in describe_run(model, processor, data, args):
                report(line)
            trainer = CaptionTrainer(args, model, processor, data, accelerator, stop)
            for line in describe_steps(trainer.total_steps):
                report(line)
            state = trainer.train()
    for line in describe_result(trainer, Path(args.output_dir)):
        report(line)
    leave_group()
    accelerator.end_training()
    return state


@contextmanager
def _claimed(accelerator: Accelerator, args: TrainArguments) -> Iterator[str | None]:
    """Let the main process hold the run's folder; tell all of them what to go on from."""
    with ExitStack() as held:
        checkpoint = None
        with one_fate(accelerator):
            if accelerator.is_main_process:
                claim = claim_output_dir(Path(args.output_dir), args.resume_from_checkpoint, args.to_dict())
                checkpoint = held.enter_context(claim)
        yield broadcast_object_list([None if checkpoint is None else str(checkpoint)])[0]


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
