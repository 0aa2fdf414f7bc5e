"""Several processes as one: what fails in one of them ends all, and is told once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .checkpoints import discard_draft, draft_of, open_draft, put_in_place, writing
from .errors import OtherProcessError, TrainingError

GRACE_SECONDS = 0.5


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


@contextmanager
def shared_folder(accelerator: Accelerator, target: Path) -> Iterator[Path]:
    """Let all processes write into one `atomic_folder`, which the main process makes and puts in place.

    Args:
        accelerator: Of the run.
        target: The folder to write or to replace.

    Raises:
        TrainingError: on all processes if anything cannot be written; what was there before is untouched.
    """
    main = accelerator.is_main_process
    try:
        with one_fate(accelerator), writing(target):
            if main:
                open_draft(target)
        with one_fate(accelerator), writing(target):
            yield draft_of(target)
        with one_fate(accelerator), writing(target):
            if main:
                put_in_place(target)
    except BaseException:
        if main:
            discard_draft(target)
        raise


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
    """Return what the command ends with: 2 for what was wrong before the run, 1 for what ended it."""
    return 2 if isinstance(error, (OSError, ValueError)) and not isinstance(error, TrainingError) else 1
