"""Read text and JSON, write files atomically, lock output folders.

A file is written under a draft's name (".NAME.partial") and renamed once it is on disk. A draft that a killed
process left behind can be deleted.
"""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import UserError

# The kernel holds the lock during the work, and releases it when the process ends. The file itself stays: if
# it were removed, two processes could each lock another file of this name.
_LOCK_FILE = ".lock"


@contextmanager
def open_utf8(path: str | os.PathLike[str], newline: str | None = None) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, with or without a byte order mark; raise UserError for other encodings."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            raise _encoding_error(os.fspath(path), file.read(2), error) from error


def decode_utf8(content: bytes, where: str) -> str:
    """Decode UTF-8 text as `open_utf8` does; `where` names it in the error."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _encoding_error(where, content[:2], error) from error


def _encoding_error(where: str, begin: bytes, error: UnicodeDecodeError) -> UserError:
    seems = "UTF-16" if begin in (BOM_UTF16_LE, BOM_UTF16_BE) else "Windows-1252 or Latin-1"
    return UserError(f"{where} is not UTF-8 text, it seems to be {seems}: save it as UTF-8 ({error})")


def read_utf8(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file; see `open_utf8`."""
    with open_utf8(path) as file:
        return file.read()


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; `where` names its file or line in the error.

    Raises:
        UserError: It is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; raise UserError if it is not JSON."""
    return parse_json(read_utf8(path), os.fspath(path))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 atomically; `errors` as for `str.encode`."""
    draft_of(path).write_text(text, encoding="utf-8", errors=errors)
    put_in_place(path)


def draft_of(target: Path) -> Path:
    """Return the draft's path of a file or folder."""
    return target.with_name(f".{target.name}.partial")


def put_in_place(target: Path) -> None:
    """Rename a file's draft to the file, after its content is on disk."""
    draft = draft_of(target)
    sync(draft)
    draft.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_ordinary_permissions(path: Path) -> None:
    """Set the default permissions of new files: safetensors writes files that only their owner can read."""
    umask = os.umask(0o077)  # it cannot be read without setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def existing_part(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def require_writable(folder: Path) -> None:
    """Raise a PermissionError for an `--output_dir` that cannot be written to or created."""
    there = existing_part(folder)
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise PermissionError(f"--output_dir {folder} cannot be written to: give another folder.")


@contextmanager
def writing_to(name: str) -> Iterator[None]:
    """Turn an OSError inside into a PermissionError that names the folder and says what to do."""
    try:
        yield
    except Timeout:  # of a lock, which is an OSError too
        raise
    except OSError as error:
        raise PermissionError(
            f"{name} cannot be written to ({error.strerror}): give another folder."
        ) from error


@contextmanager
def exclusive_lock(folder: Path, name: str, work: str) -> Iterator[None]:
    """Create a folder, and lock it against other processes inside the block.

    Args:
        folder: The folder.
        name: Its name in messages.
        work: The kind of work in it, such as "run".

    Raises:
        FileExistsError: if another process has locked it.
        PermissionError: if it cannot be written to.
    """
    try:
        with writing_to(name):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / _LOCK_FILE).acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(
            f"another {work} is running in {name}: give another folder, or wait until it ends."
        ) from error
    with lock:
        yield
