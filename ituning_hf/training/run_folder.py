"""A run's own folder: one run in it at a time, and none over what another has to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.output_folders import held, writing_to
from .checkpoints import (
    CHECKPOINTS,
    LOG_FILE,
    RUN_FILE,
    discard_draft,
    draft_of,
    find_checkpoint,
    list_checkpoints,
    write_json,
)


@contextmanager
def claim_output_dir(
    output_dir: Path, resume_from: str | None, settings: dict[str, Any]
) -> Iterator[Path | None]:
    """Hold a run's folder for a run's life; make it first, and clear away what a killed run left half done.

    A folder without a checkpoint or a captioner is free, whatever else an earlier run left in it. A run that
    fails before it has either leaves it free.

    Args:
        output_dir: The folder.
        resume_from: A checkpoint in it, or "latest", or None for a new run.
        settings: Written down for the reader.

    Yields:
        The checkpoint to go on from. None for a new run; also for "latest" before there is a checkpoint, so
        that one and the same command starts a run and goes on with it.

    Raises:
        FileExistsError: if a run is at work there, or one is there already and is not to be resumed.
        FileNotFoundError, ValueError: if the checkpoint to resume from is not there, or another run's.
        PermissionError: if nothing can be written there.
    """
    if resume_from not in (None, "latest"):
        _require_inside(output_dir, find_checkpoint(output_dir, resume_from))
    name = f"--output_dir {output_dir}"
    with held(output_dir, name, "run"):
        checkpoint = find_starting_point(output_dir, resume_from)
        with writing_to(name):
            _clear_leftovers(output_dir)
            if checkpoint is None:
                write_json(output_dir / RUN_FILE, {"settings": settings})
        try:
            yield checkpoint
        except BaseException:
            if not _shows_something(output_dir):
                (output_dir / RUN_FILE).unlink(missing_ok=True)
            raise


def find_starting_point(output_dir: Path, resume_from: str | None) -> Path | None:
    """Return the checkpoint that a run begins with, None for its beginning; nothing is written.

    Raises:
        FileExistsError, FileNotFoundError: as `claim_output_dir`.
    """
    if resume_from is None and _shows_something(output_dir):
        raise FileExistsError(
            f"--output_dir {output_dir} holds another run: give another folder, remove that one, or go on "
            "with the run by --resume_from_checkpoint latest."
        )
    if resume_from is None:
        return None
    if resume_from == "latest" and not list_checkpoints(output_dir):
        if (output_dir / "last").exists():
            raise FileExistsError(
                f"--output_dir {output_dir} holds a finished run without checkpoints: there is nothing to "
                "resume. Give another folder, or remove that one."
            )
        return None
    return find_checkpoint(output_dir, resume_from)


def _require_inside(output_dir: Path, checkpoint: Path) -> None:
    if output_dir.resolve() not in checkpoint.resolve().parents:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} lies outside --output_dir {output_dir}: give the "
            "folder of the run that the checkpoint belongs to."
        )


def _shows_something(output_dir: Path) -> bool:
    captioners = (output_dir / "best", output_dir / "last")
    return bool(list_checkpoints(output_dir)) or any(folder.exists() for folder in captioners)


def _clear_leftovers(output_dir: Path) -> None:
    """Remove the drafts of a killed run, and undo what it did by half; only names that runs give."""
    for name in (RUN_FILE, LOG_FILE):
        draft_of(output_dir / name).unlink(missing_ok=True)
    names = {output_dir / name for name in ("best", "last")}
    names |= {
        output_dir / leftover.stem.removeprefix(".") for leftover in output_dir.glob(".nonfinite-*.partial")
    }
    for folder in (output_dir / CHECKPOINTS, output_dir / "backbones"):
        for leftover in (*folder.glob(".*.partial"), *folder.glob(".*.old")):
            names.add(folder / leftover.stem.removeprefix("."))
    for target in names:
        discard_draft(target)
