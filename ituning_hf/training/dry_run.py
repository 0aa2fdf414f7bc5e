"""`--dry_run`: one optimizer step of a run, and its plan in numbers; writes nothing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..utils.devices import peak_resident_memory
from ..utils.terminal import format_bytes
from .data import count_label_tokens
from .loop import CaptionTrainer


def dry_run(trainer: CaptionTrainer, checkpoint: Path | None, report: Callable[[str], None]) -> None:
    """Take a run's next optimizer step and report shapes, memory and plan; every process must call it."""
    if checkpoint is not None:
        trainer.state = trainer.checkpoints.restore(checkpoint)
    trainer.captioner.train()
    accumulation, processes, images = trainer.sampler.step_shape
    started = time.perf_counter()
    batches = list(itertools.islice(trainer.micro_batches(), accumulation))
    reading = time.perf_counter() - started
    for name, tensor in batches[0].items():
        if isinstance(tensor, torch.Tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            report(f"Batch      {name:<15} {tuple(tensor.shape)}  {dtype}")
    items = sum(map(count_label_tokens, batches))
    num_items = int(trainer.accelerator.reduce(items, "sum"))
    started = time.perf_counter()
    means = trainer.optimizer_step(batches)
    seconds = time.perf_counter() - started
    report(
        f"Step       {accumulation} x {processes} x {images} (batches x processes x images of a batch), "
        f"{num_items:,} label tokens"
    )
    report(f"Time       {seconds:.2f} s for this first step; {reading:.2f} s to read its images")
    report(f"Loss       {means['loss']:.4f}")
    if "reward" in means:
        report(f"Reward     {means['reward']:.4f}, captions of {means['sample_length']:.1f} tokens")
    report(f"Memory     {_peak_memory(trainer.accelerator)}")
    for line in _plan(trainer):
        report(line)


def _peak_memory(accelerator: Accelerator) -> str:
    """Return the peak memory of the process that used most."""
    if accelerator.device.type == "cuda":
        own, what = torch.cuda.max_memory_allocated(accelerator.device), "allocated on a GPU at its peak"
    else:
        own, what = peak_resident_memory(), "resident at a process's peak, Python and libraries included"
    return f"{format_bytes(max(gather_object([own])))} {what}"


def _plan(trainer: CaptionTrainer) -> list[str]:
    args, step, total = trainer.args, trainer.state.step, trainer.total_steps

    def times(every: str) -> int:
        """Count what is left of something that is done each epoch, or every so many steps, and at the end."""
        period = trainer.period(every)
        return math.ceil(total / period) - step // period if step < total else 0

    plan = f"{total:,} steps"
    if per_epoch := trainer.steps_per_epoch:
        plan = f"{per_epoch:,} steps per epoch, {total:,} in all ({total / per_epoch:.4g} epochs)"
    lines = [f"Plan       {plan}"]
    if step:
        lines.append(f"Resume     after step {step:,}; {total - step:,} are left")
    if trainer.data.evaluation:
        lines.append(
            f"Validate   {times(args.eval_steps):,} times on {len(trainer.data.evaluation):,} images"
        )
    # The adapters' fp32 weights and AdamW's two moments of each.
    size = 3 * sum(4 * tensor.numel() for tensor in trainer.captioner.adapter_state_dict().values())
    lines.append(
        f"Checkpoint {times(args.checkpointing_steps):,} times, each about {format_bytes(size)}; the newest "
        f"{args.max_checkpoints} are kept"
    )
    return [*lines, f"Output     {args.output_dir}"]
