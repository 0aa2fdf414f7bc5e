"""A training run, from its settings to the captioner on disk."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ..data.dataset import over_long_share
from ..data.stream import ShardStream
from ..evaluation.metrics import require_scorers
from ..evaluation.scores import METRIC_NAMES
from ..hub.inspection import describe_config
from ..utils.distributed import create_accelerator, leave_group, raise_on_main, sync_errors
from ..utils.errors import UserError
from .arguments import TrainArguments
from .checkpoints import TrainState
from .data import TrainingData, limit_evaluation, load_data, with_features
from .dry_run import dry_run
from .identity import GIVEN_DATA
from .loop import CaptionTrainer
from .objectives import check_images_for_cider
from .reporting import require_trackers
from .run_folder import BEST, LAST, check_output_dir, claim_output_dir, list_checkpoints
from .setup import check_backbones, load_model, with_backbones
from .signals import StopRequest, stop_on_signals

FEW_STEPS = 100  # captions of 30 photographs did not end after 76 optimizer steps, but did after 120


def train(args: TrainArguments, data: TrainingData | None = None) -> TrainState:
    """Train a captioner.

    A run can be ended at any time and resumed with `resume_from_checkpoint="latest"`, to the same bytes. With
    that setting from the beginning, the same call starts the run, resumes it, and does nothing once it is
    complete. After SIGTERM or Ctrl-C a run finishes its step and saves a checkpoint. `torchrun` passes
    signals to its processes, `accelerate launch` does not.

    Args:
        args: The settings.
        data: The images; by default those that the settings name.

    Returns:
        The progress and the best validation; the captioners are in `args.output_dir`, "best" and "last".

    Raises:
        UserError, OSError: for settings, data or backbones that cannot be used, before long work starts.
        NonFiniteLossError: at a NaN or infinite loss or gradient.
        TrainingError: if too many images cannot be read, or files cannot be written.
        RunStopped: after SIGTERM or Ctrl-C; a KeyboardInterrupt.
    """
    require_trackers(args.report_to)
    if args.eval_caption_images:
        require_scorers(java=False, needed_by="--eval_caption_images")
    if args.objective == "cider":
        require_scorers(java=False, needed_by="--objective cider")
    args = with_backbones(args)
    if data is not None:
        args = replace(args, dataset=GIVEN_DATA)
    if args.full_determinism:  # for the rest of the process
        from transformers import enable_full_determinism  # it imports Transformers' trainer

        enable_full_determinism(args.seed)
    with stop_on_signals() as stop:
        accelerator = create_accelerator(
            args.mixed_precision,
            log_with=args.report_to or None,
            project_dir=os.path.join(args.output_dir, "tensorboard"),
        )
        _check_output_dir(args, accelerator)
        with sync_errors(accelerator):
            check_backbones(args)  # before the data are read, which may take minutes
            data = limit_evaluation(data or load_data(args), args)
            if args.objective == "cider":
                check_images_for_cider(data.train)
            data = with_features(data, args.features)
        state = _run(args, data, accelerator, stop)
    leave_group()
    accelerator.end_training()
    return state


def _run(args: TrainArguments, data: TrainingData, accelerator: Accelerator, stop: StopRequest) -> TrainState:
    def report(text: str) -> None:
        with suppress(OSError):  # the reader of the pipe has exited; the run continues
            accelerator.print(text, flush=True)

    set_seed(args.seed)  # the adapters' initial weights are the same on every process
    with sync_errors(accelerator):
        model, processor = load_model(args, data.features, accelerator.device)
    trainer = CaptionTrainer(args, model, processor, data, accelerator, stop)
    with ExitStack() as claimed:
        checkpoint = None
        with sync_errors(accelerator):
            if accelerator.is_main_process:
                claim = claim_output_dir(Path(args.output_dir), args.resume_from_checkpoint, args.dry_run)
                checkpoint = claimed.enter_context(claim)
        checkpoint = broadcast_object_list([checkpoint])[0]
        if args.dry_run:
            report("Dry run: one optimizer step; nothing is written.")
        elif args.resume_from_checkpoint is not None and checkpoint is None:
            report("There is no checkpoint to resume from yet: the run starts from the beginning.")
        if accelerator.is_main_process:
            for line in _describe_run(trainer):
                report(line)
        if args.dry_run:
            dry_run(trainer, checkpoint, report)
            return trainer.state
        state = trainer.train(checkpoint)
    for line in _describe_result(trainer):
        report(line)
    return state


def _check_output_dir(args: TrainArguments, accelerator: Accelerator) -> None:
    """Refuse a folder that cannot be used, before data and models are loaded; every process must call it."""
    folder = Path(args.output_dir)
    with sync_errors(accelerator):
        if accelerator.is_main_process:
            check_output_dir(folder, args.resume_from_checkpoint)
    found = gather_object([[path.name for path in list_checkpoints(folder)[-1:]]])
    newest = max(found)
    if args.resume_from_checkpoint == "latest" and newest > found[0]:
        message = (
            f"Process {found.index(newest)} has {newest[0]} in --output_dir {folder}, but process 0, which "
            f"reads and writes checkpoints, has {(found[0] or ['none'])[0]}: start process 0 on the other "
            "host, or copy the folder to its host."
        )
        raise_on_main(accelerator, UserError(message))


def _describe_run(trainer: CaptionTrainer) -> list[str]:
    """Describe the models and the data, one line each."""
    model, data, args, config = trainer.captioner, trainer.data, trainer.args, trainer.captioner.config
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = describe_config(config)["parameters"]["total"]  # the encoder may not be loaded
    over_long = 0.0  # of a stream it is not known
    validation = f"{len(data.evaluation):,}"
    if isinstance(data.train, ShardStream):
        count, share = len(data.train.shards), 100 * (1 - data.train.val_share)
        images = f"{share:.4g}% of {count:,} tar shard{'s' * (count > 1)}"
        if len(data.evaluation) == args.max_eval_images:
            validation = f"the first {validation}"
    else:
        images = f"{len(data.train):,}"
        if data.num_eval_images != len(data.evaluation):
            validation += f" of {data.num_eval_images:,}"
        over_long = over_long_share(data.train, trainer.processor, args.max_caption_tokens)
    lines = [
        f"Backbones  {config.vision_model_name_or_path} + {config.text_model_name_or_path} (frozen)",
        f"Adapter    r = {config.adapter_hidden_size}, {config.adapter_num_heads} heads, in "
        f"{len(config.adapter_layers)} of {config.text_config.num_hidden_layers} layers",
        f"Trainable  {trainable:,} of {total:,} parameters ({trainable / total:.2%})",
        f"Images     {images} to train on, {validation} for validation",
    ]
    if data.features is not None:
        spec = data.features.spec
        lines.append(
            f"Features   {spec.storage}, {spec.num_tokens} x {spec.hidden_size} for each image, in "
            f"{args.features}; neither images nor vision encoder are loaded"
        )
    if over_long:
        lines.append(f"Captions   {over_long:.2%} are cut at {args.max_caption_tokens} tokens")
    if trainer.total_steps < FEW_STEPS:
        lines.append(
            f"Few steps  {trainer.total_steps:,} in total: the captioner may not learn where captions end; "
            "train more epochs, or use smaller batches"
        )
    return lines


def _describe_result(trainer: CaptionTrainer) -> list[str]:
    """Describe the results, one line each; every process must call it."""
    state, output_dir, lines = trainer.state, trainer.output_dir, []
    unreadable = len(set(gather_object(sorted(trainer.batches.unreadable))))
    if unreadable:
        lines.append(f"Skipped    {unreadable:,} images that could not be read")
    if state.best_metric is not None:
        metric = METRIC_NAMES.get(trainer.args.metric_for_best_model, "loss")
        reached = f"validation {metric} {state.best_metric:.4f}, step {state.best_step}"
        lines.append(f"Best       {output_dir / BEST}  ({reached})")
        if state.is_worse_than_untrained(trainer.args.metric_for_best_model == "loss"):
            lines.append("Warning    worse than before training: lower --learning_rate, or train longer")
    return [*lines, f"Last       {output_dir / LAST}  (step {state.step})"]
