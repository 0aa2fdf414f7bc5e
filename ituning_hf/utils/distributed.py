"""Several processes: create the accelerator, and propagate errors across ranks."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, parse_flag_from_env

from .errors import OtherProcessError, UserError, exit_code_of
from .terminal import quiet_transformers

_GRACE_SECONDS = 0.5


def create_accelerator(mixed_precision: str | None = None, **kwargs: Any) -> Accelerator:
    """Return an accelerator over all the processes that were launched.

    Args:
        mixed_precision: As `Accelerator` takes it; None leaves it to `accelerate config`.
        **kwargs: For `Accelerator`.

    Raises:
        UserError: for a launcher's option that would shard the model or accumulate gradients a second time;
            if Accelerate sees fewer processes than were launched (each would do all the work and overwrite
            the others' files); for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):  # `accelerate launch` sets it
            raise UserError(
                f"ACCELERATE_USE_{name} is set, and the model cannot be sharded. Only the small adapters "
                "have gradients and optimizer states: use `accelerate launch --multi_gpu` or `torchrun`."
            )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU Accelerate otherwise sees one process under `torchrun`.
    cpu = launched > 1 and not torch.accelerator.is_available()
    # Buffers are frozen and equal on all ranks: DDP would broadcast them in each step, int8 weights too.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=handlers, **kwargs)
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched and Accelerate sees {accelerator.num_processes}: start "
            "them with `accelerate launch` or `torchrun`."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"Accelerate accumulates {accelerator.gradient_accumulation_steps} steps: give "
            "--gradient_accumulation_steps to `ituning train`, and not to `accelerate launch`."
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise UserError(
            f"mixed precision fp16 requires a GPU, and on {accelerator.device} Accelerate would compute "
            "in fp32 and not say so: give --mixed_precision bf16 or no."
        )
    return accelerator


@contextmanager
def command_process() -> Iterator[None]:
    """Set up a command's logging, and leave the process group at its end."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    quiet_transformers()
    try:
        yield
    finally:
        leave_group()  # a process that exits inside the group may be aborted and lose its exit code


@contextmanager
def sync_errors(accelerator: Accelerator) -> Iterator[None]:
    """End all processes when one fails inside the block, so that the others do not wait for it forever.

    Every process enters the block. The code inside must not wait for other processes.

    Raises:
        OtherProcessError: if another process failed. The first that failed raises its own error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reports = gather_object([None if error is None else (str(error), exit_code_of(error) or 1)])
    for process, report in enumerate(reports):
        if report is not None and process == accelerator.process_index and error is not None:
            raise error
        if report is not None:
            raise OtherProcessError(*report) from error


def raise_on_main(accelerator: Accelerator, error: Exception) -> NoReturn:
    """Raise an error that every process has found on the main one, and an OtherProcessError on the others."""
    if accelerator.is_main_process:
        raise error
    raise OtherProcessError(str(error), exit_code_of(error) or 1) from error


def leave_group() -> None:
    """Close this process's group of processes, if it is in one; no collective may follow.

    A thread of PyTorch's gloo needs the GIL to release the last tensors it sent. Closing the group can wait
    for that thread while it holds the GIL, and deadlock (seen with PyTorch 2.13). The sleep releases the GIL.
    """
    if torch.distributed.is_initialized():
        time.sleep(_GRACE_SECONDS)
        torch.distributed.destroy_process_group()
