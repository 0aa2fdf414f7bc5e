"""Names, captions and splits of dataset entries, which all readers parse alike."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..utils.errors import UserError
from ..utils.terminal import printable
from .splits import SPLIT_NAMES

_PROBED = 100  # images to look for in a folder to decide whether it contains the images of a file
_PLAIN_NAME = re.compile(r"[^./\\:][^/\\:]*(/[^./\\:][^/\\:]*)*")


class MissingSplitError(UserError):
    """A dataset has no images of a split; `counts` has the number of images of its splits."""

    def __init__(self, where: str, split: str, counts: Mapping[str | None, int]) -> None:
        present = ", ".join(f"{name!r} ({count:,})" for name, count in counts.items())
        missing = f" of split {split!r}; it has {present}" if counts else ""
        if len(counts) == 1 and split == "train":
            missing += ". If its file or folder has the name of a split by chance, rename it"
        super().__init__(f"{where} has no images{missing}")


def clean_caption(text: str) -> str:
    """Replace each run of whitespace, including line breaks, with one space, and strip both ends.

    A lone surrogate, which JSON can contain and tokenizers refuse, becomes a question mark.
    """
    if not text.isascii():
        text = text.encode("utf-8", errors="replace").decode("utf-8")
    return " ".join(text.split())


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Clean each caption and drop the empty ones."""
    return tuple([cleaned for text in texts if (cleaned := clean_caption(text))])


def parse_file_name(value: Any, key: str, absolute: bool = False) -> str:
    """Check and normalize the name of an image file in a dataset.

    Args:
        value: The name. It must be a string and not a URL, and stay inside the folder it is relative to.
        key: The field or column, for the error message.
        absolute: Whether an absolute path is allowed.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{key!r} must be a file name, got {value!r}")
    if _PLAIN_NAME.fullmatch(value):
        return value
    if "://" in value:
        raise UserError(f"{key!r} is a URL, {value!r}: download the images and name their files")
    # A downloaded dataset must not read files outside its folder, on any system. Users' own tables may
    # contain absolute paths.
    name = PurePosixPath(value).as_posix()  # without the "./" that can precede a Windows path
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    leads_out = ".." in PureWindowsPath(name).parts  # a Windows path splits at / and at \
    if (is_absolute and not absolute) or (leads_out and not is_absolute):
        raise UserError(
            f"{key!r} must stay inside the folder, got {value!r}: give --image_root, a folder that contains "
            "all images, and write their paths relative to it"
        )
    return name


def parse_split(value: Any) -> str | None:
    """Return the split of a row, or None if its `split` is None or empty."""
    if value is None or value == "":
        return None
    split = value.lower() if isinstance(value, str) else None
    if split != "restval" and split not in SPLIT_NAMES:
        raise UserError(f"'split' must be train, val or test, got {value!r}")
    return SPLIT_NAMES.get(split, split)


def find_folder(folders: Sequence[Path], names: Iterable[str]) -> Path | None:
    """Return the first folder that contains one of the first images."""
    first = itertools.islice(names, _PROBED)
    probed = [spelling for name in first for spelling in {name, name.replace("\\", "/")}]
    return next((folder for folder in folders if any((folder / name).is_file() for name in probed)), None)


def first_names(names: Sequence[str | Path], count: int = 3) -> str:
    """Format the first few of many names for a message."""
    return ", ".join(printable(str(name)) for name in names[:count]) + (", ..." if len(names) > count else "")
