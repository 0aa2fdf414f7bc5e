"""Files that are there whole and for good, or not at all.

A draft's name starts with a dot and ends in ".partial"; whatever a killed process left of one is rubbish.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def draft_of(target: Path) -> Path:
    """Return where a file or folder is written before it gets its name."""
    return target.with_name(f".{target.name}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never seen half-written."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 that is never seen half-written; `errors` as for `str.encode`."""
    draft_of(path).write_text(text, encoding="utf-8", errors=errors)
    put_in_place(path)


def put_in_place(target: Path) -> None:
    """Give a file's draft its name, once all that is in it is on disk."""
    draft = draft_of(target)
    sync(draft)
    draft.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_ordinary_permissions(path: Path) -> None:
    """Let whoever may read other new files read this one: safetensors keeps its files from everybody else."""
    umask = os.umask(0o077)  # there is no way to look at it without setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)
