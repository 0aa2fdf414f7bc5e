"""Folders of a run: written whole or not at all, found again, and never written over another run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"
CHECKPOINTS = "checkpoints"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write in that takes the target's place only when everything is in it.

    A crash, a full disk or an error leaves what was there before untouched.

    Args:
        target: The folder to write or to replace.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(target)
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # a crash fell between the two renames below
        old.rename(target)
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def draft_of(target: Path) -> Path:
    """Return the folder that `atomic_folder` gives to write in."""
    return target.with_name(f".{target.name}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never seen half-written."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def claim_output_dir(output_dir: Path, resume_from: str | None, settings: dict[str, Any]) -> None:
    """Make the run's folder, and refuse one that holds another run.

    Raises:
        FileExistsError: if a run is there already and is not to be resumed.
        FileNotFoundError, ValueError: if the checkpoint to resume from is not there, or another run's.
        PermissionError: if nothing can be written there.
    """
    if resume_from is not None:
        checkpoint = find_checkpoint(output_dir, resume_from)
        if output_dir.resolve() not in checkpoint.resolve().parents:
            raise ValueError(
                f"--resume_from_checkpoint {resume_from} lies outside --output_dir {output_dir}: give the "
                "folder of the run that the checkpoint belongs to."
            )
    elif (output_dir / RUN_FILE).exists():
        raise FileExistsError(
            f"--output_dir {output_dir} holds another run: give another folder, remove that one, or go on "
            "with the run by --resume_from_checkpoint latest."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if resume_from is None:
            write_json(output_dir / RUN_FILE, {"settings": settings})
    except OSError as error:
        raise PermissionError(
            f"--output_dir {output_dir} cannot be written to ({error.strerror}): give a folder that can."
        ) from error


def release_output_dir(output_dir: Path) -> None:
    """Give the folder of a run that failed before it had anything to show free again."""
    if not any((output_dir / name).exists() for name in (CHECKPOINTS, "best", "last")):
        (output_dir / RUN_FILE).unlink(missing_ok=True)


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return where the checkpoint after `step` optimizer steps lies."""
    return output_dir / CHECKPOINTS / f"step_{step:08d}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return a run's whole checkpoints, oldest first."""
    folders = (output_dir / CHECKPOINTS).glob("step_*")
    return sorted(folder for folder in folders if (folder / STATE_FILE).is_file())


def find_checkpoint(output_dir: Path, resume_from: str) -> Path:
    """Return the checkpoint that `--resume_from_checkpoint` means.

    Raises:
        FileNotFoundError: if there is none.
    """
    if resume_from == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            raise FileNotFoundError(
                f"--resume_from_checkpoint latest: there is no checkpoint in {output_dir / CHECKPOINTS}; "
                "start anew without the flag."
            )
        return checkpoints[-1]
    folder = Path(resume_from)
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {folder} is no checkpoint: it has no {STATE_FILE}. Give a folder "
            f"like {checkpoint_folder(output_dir, 100)}, or 'latest'."
        )
    return folder


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for folder in list_checkpoints(output_dir)[:-keep]:
        shutil.rmtree(folder)
