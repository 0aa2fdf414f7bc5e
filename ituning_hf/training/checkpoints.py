"""A run's folders on disk: written whole and for good or not at all, and found again.

A draft's name starts with a dot and ends in ".partial"; whatever a killed process left of one is rubbish.
A folder that is replaced is called ".NAME.old" between two renames; without a NAME beside it, it is the
whole old folder, and gets its name back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..utils.files import draft_of, give_ordinary_permissions, sync
from ..utils.files import write_json as write_json
from .errors import TrainingError

RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
STATE_FILE = "trainer_state.json"
CHECKPOINTS = "checkpoints"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write in that takes the target's place only when everything in it is on disk.

    A crash, a full disk or an error leaves what was there before untouched.

    Args:
        target: The folder to write or to replace.
    """
    draft = open_draft(target)
    try:
        yield draft
        put_in_place(target)
    except BaseException:
        discard_draft(target)
        raise


def open_draft(target: Path) -> Path:
    """Make the folder to write in, an empty one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    discard_draft(target)
    draft = draft_of(target)
    draft.mkdir()
    return draft


def put_in_place(target: Path) -> None:
    """Give the draft the target's name, once all that is in it is on disk."""
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


def discard_draft(target: Path) -> None:
    """Remove what an interrupted writing left, and give a folder that it had moved aside its name back."""
    old = _old_of(target)
    if old.exists() and not target.exists():  # the interruption fell between the two renames
        old.rename(target)
    for leftover in (draft_of(target), old):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Delete a folder so that no half of it is ever taken for a whole one."""
    draft = draft_of(target)
    target.rename(draft)
    shutil.rmtree(draft)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say what could not be written and why, in place of the many errors that libraries have for it.

    Args:
        target: The file or folder; named if the error does not name a file itself.

    Raises:
        TrainingError: for a disk that is full, a folder that may not be written to, and the like.
    """
    try:
        yield
    except TrainingError:
        raise
    # PyTorch's writer knows only RuntimeError, and safetensors has an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        place = getattr(error, "filename", None) or target
        raise TrainingError(
            f"{place} could not be written ({reason}). Make room or mend the folder's permissions; the same "
            "command with --resume_from_checkpoint latest goes on from the newest whole checkpoint, or from "
            "the beginning if there is none."
        ) from error


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
        remove_folder(folder)


def is_complete(output_dir: Path, checkpoint: Path) -> bool:
    """Return whether a run that would go on from a checkpoint has nothing left to do."""
    newest = list_checkpoints(output_dir)[-1]
    return (output_dir / "last").exists() and checkpoint.resolve() == newest.resolve()


def rewind(output_dir: Path, checkpoint: Path) -> list[Path]:
    """Delete what a run made after the checkpoint that it goes on from: it makes all of it again.

    Returns:
        The folders that were deleted.
    """
    later = [folder for folder in list_checkpoints(output_dir) if folder.name > checkpoint.name]
    last = output_dir / "last"
    folders = [*([last] if last.exists() else []), *reversed(later)]
    for folder in folders:
        remove_folder(folder)
    return folders


def _old_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
