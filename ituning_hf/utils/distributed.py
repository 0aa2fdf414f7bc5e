"""Several processes as one: how they are met, and how what fails in one of them ends all, told once."""

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
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from transformers.utils import logging as transformers_logging

from .launching import refuse_unsupported_launch

GRACE_SECONDS = 0.5


class OtherProcessError(RuntimeError):
    """Another process failed, and tells why; this one ends with it.

    Args:
        text: The other process's message.
        exit_code: What the other process ends with, so that both end alike.
    """

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def create_accelerator(mixed_precision: str | None = None, **kwargs: Any) -> Accelerator:
    """Return an accelerator over all the processes that were launched.

    Under `torchrun` on a machine without a GPU, Accelerate lets each process believe that it is alone,
    unless it is told to stay on the CPU.

    Args:
        mixed_precision: As `Accelerator` takes it; None leaves it to `accelerate config`.
        **kwargs: For `Accelerator`.

    Raises:
        ValueError: if it was launched for something that is not done here, or still sees fewer processes
            than there are; each would do all of the work and write over the others. Also for fp16 on a CPU.
    """
    refuse_unsupported_launch(os.environ)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = launched > 1 and not torch.accelerator.is_available()
    # Buffers are frozen, and equal everywhere: DDP would send them round at every step, int8 weights too.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=handlers, **kwargs)
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate sees {accelerator.num_processes}: start "
            "them with `accelerate launch` or `torchrun`."
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise ValueError(
            f"mixed precision fp16 needs a GPU, and on {accelerator.device} Accelerate would compute "
            "in fp32 and not say so: give --mixed_precision bf16 or no."
        )
    return accelerator


@contextmanager
def command_process() -> Iterator[None]:
    """Let a command tell what is wrong in lines of its own, and leave the other processes at its end."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        leave_group()  # a process that ends within it may be aborted, and its exit code lost


@contextmanager
def one_fate(accelerator: Accelerator) -> Iterator[None]:
    """Let an error of one process end all of them, instead of leaving the others waiting for it.

    Every process enters the block, and what is inside must not wait for the other processes.

    Args:
        accelerator: Of the run.

    Raises:
        OtherProcessError: where another process failed. The first one that did raises its own error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reports = gather_object([None if error is None else (str(error), _exit_code(error))])
    for process, report in enumerate(reports):
        if report is not None and process == accelerator.process_index and error is not None:
            raise error
        if report is not None:
            raise OtherProcessError(*report) from error


def tell_once(accelerator: Accelerator, error: Exception) -> NoReturn:
    """Raise an error that every process has found, so that it is told once.

    Args:
        accelerator: Of the run.
        error: The same on every process.

    Raises:
        Exception: the error, on the main process.
        OtherProcessError: on the others.
    """
    if accelerator.is_main_process:
        raise error
    raise OtherProcessError(str(error), _exit_code(error)) from error


def leave_group() -> None:
    """Close this process's group of processes, if it is in one; no collective may follow.

    A thread of PyTorch's gloo needs Python's lock to let go of the last tensors it carried, and closing the
    group can wait for that thread while it holds the lock: for ever (seen with PyTorch 2.13). A moment in
    which nobody holds the lock comes first.
    """
    if torch.distributed.is_initialized():
        time.sleep(GRACE_SECONDS)
        torch.distributed.destroy_process_group()


def _exit_code(error: Exception) -> int:
    """Return what the command ends with: 2 for what was wrong before the work, 1 for what ended it."""
    return 2 if isinstance(error, (OSError, ValueError)) else 1
