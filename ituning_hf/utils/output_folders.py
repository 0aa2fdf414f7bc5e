"""Folders that work is written to: they can be written to, and one process at a time works in each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Locked while work goes on, by the kernel, which frees it however the process ends. The file itself stays:
# if whoever is done removed it, two others could each hold the lock on a file of this name.
LOCK_FILE = ".lock"


def existing_part(folder: Path) -> Path:
    """Return the folder, or what is there of the folders above it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def require_writable(folder: Path) -> None:
    """Refuse an `--output_dir` that cannot be written to, or made; nothing is written.

    Raises:
        PermissionError: saying so.
    """
    there = existing_part(folder)
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise PermissionError(f"--output_dir {folder} cannot be written to: give a folder that can.")


@contextmanager
def writing_to(name: str) -> Iterator[None]:
    """Tell in one line what the system says of a folder that cannot be written to.

    Args:
        name: What to call the folder.

    Raises:
        PermissionError: in place of any OSError inside.
    """
    try:
        yield
    except Timeout:  # of a lock, which is an OSError too
        raise
    except OSError as error:
        raise PermissionError(
            f"{name} cannot be written to ({error.strerror}): give a folder that can."
        ) from error


@contextmanager
def held(folder: Path, name: str, work: str) -> Iterator[None]:
    """Make a folder, and hold it for as long as work in it goes on.

    Args:
        folder: The folder.
        name: What messages call it.
        work: What goes on in it, such as "run".

    Raises:
        FileExistsError: if another process holds it.
        PermissionError: if it cannot be written to.
    """
    try:
        with writing_to(name):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK_FILE).acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"another {work} is at work in {name}: give another folder, or wait for its end."
        ) from error
    with lock:
        yield
