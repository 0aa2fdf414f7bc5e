"""A run's folder: its lock, its checkpoints, and folders that are written completely or not at all.

A draft's name starts with a dot and ends in ".partial". A folder that is being replaced is called ".NAME.old"
between two renames: without a NAME, it is the complete old folder and gets its name back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..utils.errors import UserError
from ..utils.files import (
    draft_of,
    exclusive_lock,
    give_ordinary_permissions,
    require_writable,
    sync,
    writing_to,
)
from .errors import TrainingError

RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
PAGE_FILE = "report.html"
STATE_FILE = "trainer_state.json"
CHECKPOINTS = "checkpoints"
BEST, LAST = "best", "last"  # the captioners


@contextmanager
def claim_output_dir(
    output_dir: Path, resume_from: str | None, dry_run: bool = False
) -> Iterator[Path | None]:
    """Create and lock a run's folder, and remove the drafts of a killed run; a dry run writes nothing.

    Yields:
        The checkpoint to resume from, as `check_output_dir` returns it.

    Raises:
        FileExistsError: if another process is running there.
        Exception: from `check_output_dir`.
    """
    start = check_output_dir(output_dir, resume_from)  # before anything is created
    if dry_run:
        yield start
        return
    name = f"--output_dir {output_dir}"
    with exclusive_lock(output_dir, name, "run"):
        with writing_to(name):
            _remove_leftovers(output_dir)
        yield check_output_dir(output_dir, resume_from)


def check_output_dir(output_dir: Path, resume_from: str | None) -> Path | None:
    """Return the checkpoint that a run resumes from, None for a new run; writes nothing.

    Args:
        output_dir: The run's folder. Without a checkpoint or a captioner a new run may start in it.
        resume_from: A checkpoint in it; "latest", which starts a new run if there is none, so that one
            command starts a run and resumes it; or None for a new run.

    Raises:
        FileExistsError: if the folder holds another run.
        FileNotFoundError, UserError: if the checkpoint does not exist, or belongs to another folder.
        PermissionError: if the folder cannot be written to.
    """
    require_writable(output_dir)
    checkpoints = list_checkpoints(output_dir)
    if resume_from is None and (checkpoints or any((output_dir / name).exists() for name in (BEST, LAST))):
        raise FileExistsError(
            f"--output_dir {output_dir} holds another run: give another folder, remove it, or resume the run "
            "with --resume_from_checkpoint latest."
        )
    if resume_from == "latest" and not checkpoints and (output_dir / LAST).exists():
        raise FileExistsError(
            f"--output_dir {output_dir} holds a finished run without checkpoints: there is nothing to "
            "resume. Give another folder, or remove it."
        )
    if resume_from in (None, "latest"):
        return checkpoints[-1] if checkpoints else None
    folder = Path(resume_from)
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {folder} is not a checkpoint: it has no {STATE_FILE}. Give a folder "
            f"like {checkpoint_folder(output_dir, 100)}, or 'latest'."
        )
    if output_dir.resolve() not in folder.resolve().parents:
        raise UserError(
            f"--resume_from_checkpoint {folder} is outside --output_dir {output_dir}: give the folder of the "
            "run that the checkpoint belongs to."
        )
    return folder


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return output_dir / CHECKPOINTS / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return a run's complete checkpoints, oldest first."""
    folders = (output_dir / CHECKPOINTS).glob("step_*")
    return sorted(folder for folder in folders if (folder / STATE_FILE).is_file())


def remove_folder(target: Path) -> None:
    """Delete a folder; it loses its name before its contents."""
    draft = draft_of(target)
    target.rename(draft)
    shutil.rmtree(draft)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a draft that replaces the target when everything in it is on disk, but not after an error."""
    _recover(target)
    draft = draft_of(target)
    draft.mkdir(parents=True)
    try:
        yield draft
        _replace(target)
    finally:
        _recover(target)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the errors of libraries that cannot write into a TrainingError.

    It names the file of the error, or else the target, which is a file or folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        path = getattr(error, "filename", None) or target
        raise TrainingError(
            f"{path} could not be written ({reason}). Free some space or correct the folder's permissions, "
            "then rerun the command with --resume_from_checkpoint latest."
        ) from error


def _replace(target: Path) -> None:
    """Rename the draft to the target, once everything in it is on disk."""
    draft, old = draft_of(target), _old_of(target)
    for path in draft.rglob("*"):
        if path.suffix == ".safetensors":
            give_ordinary_permissions(path)
        sync(path)
    sync(draft)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Remove the target's draft; undo a replacement that ended between its two renames."""
    old = _old_of(target)
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (draft_of(target), old):
        shutil.rmtree(leftover, ignore_errors=True)


def _old_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _remove_leftovers(output_dir: Path) -> None:
    """Remove the drafts of a killed run; files of other names are not touched."""
    for name in (RUN_FILE, LOG_FILE, PAGE_FILE):
        draft_of(output_dir / name).unlink(missing_ok=True)
    for name in (BEST, LAST):
        _recover(output_dir / name)
    for leftover in (output_dir / CHECKPOINTS).glob(".step_*"):  # ".partial" or ".old"
        _recover(leftover.with_name(leftover.stem.removeprefix(".")))
