"""A run from its settings to the captioner on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ..utils.determinism import full_determinism
from ..utils.distributed import create_accelerator, leave_group, one_fate
from .arguments import TrainArguments
from .dry_run import dry_run
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
