"""`--dry_run`: a run up to its first optimizer step, told in numbers, with nothing written."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..utils.distributed import leave_group
from ..utils.output_folders import require_writable
from .arguments import TrainArguments
from .loop import CaptionTrainer
from .memory import format_bytes, peak_resident_memory
from .run_folder import find_starting_point
from .setup import TrainingData, describe_run, describe_steps, load_model
from .signals import StopRequest
from .small_backbones import make_small_backbones
from .state import TrainState

Report = Callable[[str], None]


def dry_run(args: TrainArguments, data: TrainingData, accelerator: Accelerator, report: Report) -> TrainState:
    """Build everything, take one optimizer step with the trainer's own code, and say what was seen.

    Every process must call it. Nothing is written, to `output_dir` or elsewhere that stays.

    Args:
        args: The settings of the run that is planned.
        data: Its images.
        accelerator: Where and in what precision.
        report: Is told each line.

    Returns:
        Where the run would begin: step 0, or the checkpoint's.

    Raises:
        ValueError, OSError: as the run itself would.
    """
    report("Dry run: one optimizer step; nothing is written.")
    checkpoint, refusal = _starting_point(args)
    # A checkpoint is compared with the settings of the run itself.
    planned = replace(args, resume_from_checkpoint=checkpoint)
    set_seed(args.seed)
    if args.text_model is None and checkpoint is None:
        model, processor = _load_over_untrained_backbones(planned, data, accelerator, report)
    else:
        model, processor = load_model(planned, data, accelerator, report)
    for line in describe_run(model, processor, data, args):
        report(line)
    trainer = CaptionTrainer(planned, model, processor, data, accelerator, StopRequest())
    if checkpoint is not None:
        trainer.restore(Path(checkpoint))
    for line in (*_describe_step(trainer), *_describe_plan(trainer), f"Output     {args.output_dir}"):
        report(line)
    leave_group()
    accelerator.end_training()
    if refusal is not None:  # after what was asked for; the run itself would begin with it
        raise refusal
    return trainer.state


def _starting_point(args: TrainArguments) -> tuple[str | None, OSError | None]:
    """Return the checkpoint that the run would begin with, or why it would be refused."""
    folder = Path(args.output_dir)
    try:
        checkpoint = find_starting_point(folder, args.resume_from_checkpoint)
        require_writable(folder)
    except (FileExistsError, PermissionError) as error:
        return None, error
    return None if checkpoint is None else str(checkpoint), None


def _load_over_untrained_backbones(
    args: TrainArguments, data: TrainingData, accelerator: Accelerator, report: Report
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Build the captioner over small backbones of the run's shapes, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as own_folder:
        folder = broadcast_object_list([own_folder])[0]  # of several processes, only the first can save
        if accelerator.is_main_process:
            make_small_backbones(folder, data.train, vision_steps=0, text_steps=0)
        accelerator.wait_for_everyone()
        vision, text = (os.path.join(folder, part) for part in ("vision", "text"))
        loaded = load_model(replace(args, vision_model=vision, text_model=text), data, accelerator, report)
        accelerator.wait_for_everyone()
    return loaded


def _describe_step(trainer: CaptionTrainer) -> list[str]:
    """Take the run's next optimizer step, and say what went in and what it took."""
    trainer.captioner.train()
    started = time.perf_counter()
    batches = list(itertools.islice(trainer._micro_batches(), trainer.args.gradient_accumulation_steps))
    read = time.perf_counter() - started
    shapes = _describe_batch(batches[0])
    images, rows, tokens = _count(trainer, batches)
    started = time.perf_counter()
    loss = trainer._optimizer_step(batches)
    took = time.perf_counter() - started
    return [
        *shapes,
        f"Step       {images:,} images, {rows:,} captions, {tokens:,} label tokens",
        "           "
        + " x ".join(map(str, trainer.sampler.step_shape))
        + " (batches x processes x images of a batch)",
        f"Time       {took:.2f} s for this first step, without warm-up; {read:.2f} s to read its images",
        f"Loss       {loss:.4f}",
        f"Memory     {_peak_memory(trainer.accelerator)}",
    ]


def _describe_batch(batch: dict[str, Any]) -> list[str]:
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    width = max(map(len, tensors))
    shown = [
        f"{name:<{width}}  {tuple(tensor.shape)}  {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in tensors.items()
    ]
    return [f"{'Batch' if line == 0 else '':<11}{text}" for line, text in enumerate(shown)]


def _count(trainer: CaptionTrainer, batches: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Count a step's images, captions and label tokens over all processes, without what only fills up."""
    counts = torch.zeros(3, dtype=torch.long, device=trainer.accelerator.device)
    for batch in batches:
        of_image = (-1, trainer.args.captions_per_image)
        is_label = (batch["labels"][:, 1:] != IGNORE_INDEX).unflatten(0, of_image)  # (images, k, T)
        has_caption = is_label.any(dim=2)
        counts += torch.stack([has_caption.any(dim=1).sum(), has_caption.sum(), is_label.sum()])
    images, captions, tokens = trainer.accelerator.reduce(counts, "sum").tolist()
    return images, captions, tokens


def _peak_memory(accelerator: Accelerator) -> str:
    """Say the most memory that a process held so far, of the process that held most."""
    if accelerator.device.type == "cuda":
        here, what = torch.cuda.max_memory_allocated(accelerator.device), "allocated on a GPU at its peak"
    else:
        here, what = peak_resident_memory(), "resident at a process's peak, Python and libraries included"
    return f"{format_bytes(max(gather_object([here])))} {what}"


def _describe_plan(trainer: CaptionTrainer) -> list[str]:
    """Say what the whole run, or what is left of it, amounts to."""
    args, start, total, per_epoch = (
        trainer.args,
        trainer.state.step,
        trainer.total_steps,
        trainer.steps_per_epoch,
    )
    lines = [f"Plan       {per_epoch:,} steps in an epoch, {total:,} in all ({total / per_epoch:.4g} epochs)"]
    lines += describe_steps(total)
    if args.resume_from_checkpoint is not None:
        lines.append(f"Resume     after step {start:,}; {total - start:,} are left")
    if trainer.data.evaluation:
        count = count_due(args.eval_steps, start, total, per_epoch)
        before = ", and once before training" if start == 0 else ""
        lines.append(f"Validate   {count:,} times on {len(trainer.data.evaluation):,} images{before}")
    count = count_due(args.checkpointing_steps, start, total, per_epoch)
    size = format_bytes(checkpoint_bytes(trainer))
    return [
        *lines,
        f"Checkpoint {count:,} times, each about {size}; the newest {args.max_checkpoints} are kept",
    ]


def count_due(every: str, start: int, total: int, steps_per_epoch: int) -> int:
    """Count how often something falls due after `start` steps, the run's end always included.

    Args:
        every: A number of optimizer steps, or "epoch".
        start: Optimizer steps taken before.
        total: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
    """
    if start >= total:
        return 0
    steps = steps_per_epoch if every == "epoch" else int(every)
    return math.ceil(total / steps) - start // steps


def checkpoint_bytes(trainer: CaptionTrainer) -> int:
    """Estimate a checkpoint's size on disk: the adapters' fp32 weights and AdamW's two moments of each."""
    return 3 * sum(4 * tensor.numel() for tensor in trainer.captioner.adapter_state_dict().values())
