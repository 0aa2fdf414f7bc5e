"""Names, captions and splits of dataset entries, and the checks that all readers share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..utils.errors import UserError
from ..utils.terminal import printable
from .columns import CaptionedImage

logger = logging.getLogger(__name__)

# Names of splits in folders, files and `split` columns, with the meaning that `datasets` gives them.
SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_NAMES |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")


class MissingSplitError(UserError):
    """A dataset has no images of a split; `counts` has the number of images of its splits."""

    def __init__(self, where: str, split: str, counts: Mapping[str | None, int]) -> None:
        present = ", ".join(f"{name!r} ({count:,})" for name, count in counts.items())
        missing = f" of split {split!r}; it has {present}" if counts else ""
        super().__init__(f"{where} has no images{missing}")


def clean_caption(text: str) -> str:
    """Replace each run of whitespace, including line breaks, with one space, and strip both ends.

    A lone surrogate, which JSON can contain and tokenizers refuse, becomes a question mark.
    """
    return " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Clean each caption and drop the empty ones."""
    return tuple(cleaned for text in texts if (cleaned := clean_caption(text)))


def parse_file_name(value: Any, where: str, key: str, absolute: bool = False) -> str:
    """Check and normalize the name of an image file in a dataset.

    Args:
        value: The name. It must be a string and not a URL, and stay inside the folder it is relative to.
        where: The row, for the error message.
        key: The field or column, for the error message.
        absolute: Whether an absolute path is allowed.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key!r} must be a file name, got {value!r}")
    if "://" in value:
        raise UserError(f"{where}: {key!r} is a URL, {value!r}: download the images and name their files")
    # A downloaded dataset must not read files outside its folder, on any system. Users' own tables may
    # contain absolute paths.
    name = PurePosixPath(value).as_posix()  # without the "./" that can precede a Windows path
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    leads_out = ".." in PureWindowsPath(name).parts  # a Windows path splits at / and at \
    if (is_absolute and not absolute) or (leads_out and not is_absolute):
        raise UserError(f"{where}: {key!r} must stay inside the folder, got {value!r}")
    return name


def parse_split(value: Any, where: str) -> str | None:
    """Return the split of a row, or None if its `split` is None or empty."""
    if value is None or value == "":
        return None
    if not (isinstance(value, str) and value in SPLIT_NAMES):
        raise UserError(f"{where}: 'split' must be train, val or test, got {value!r}")
    return SPLIT_NAMES[value]


def check_images_exist(images: Sequence[CaptionedImage]) -> None:
    """Raise an error for missing image files, and warn about empty files, before training begins.

    An empty file counts as an unreadable image, which training reports and skips.

    Raises:
        FileNotFoundError: Files are missing. The message has their number and the first three names.
    """
    sizes = {image.source: _file_size(image.source) for image in images if isinstance(image.source, Path)}
    missing = [path for path, size in sizes.items() if size is None]
    empty = [path for path, size in sizes.items() if size == 0]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(images):,} images are missing ({first_names(missing)}): unpack them "
            "there, or give --image_root, the folder that the paths are relative to"
        )
    if empty:
        text = "%s of %s images are empty or not files (%s): unpack or copy them again"
        logger.warning(text, f"{len(empty):,}", f"{len(images):,}", first_names(empty))


def _file_size(path: Path) -> int | None:
    """Return the size of a file, 0 for a folder, pipe or device, or None if the path does not exist."""
    if path.is_file():
        return path.stat().st_size
    return 0 if path.exists() else None


def first_names(names: Sequence[str | Path], count: int = 3) -> str:
    """Format the first few of many names for a message."""
    return ", ".join(printable(str(name)) for name in names[:count]) + (", ..." if len(names) > count else "")
