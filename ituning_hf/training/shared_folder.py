"""One folder, written by all of a run's processes and put in place by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from ..utils.distributed import one_fate
from .checkpoints import discard_draft, draft_of, open_draft, put_in_place, writing


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
