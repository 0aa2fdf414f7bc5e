"""One captioned image, as every data set reader returns it, and the checks that the readers share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Protocol

from ..utils.errors import UserError
from ..utils.terminal import printable
from .images import load_image

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

# The split that a folder, a file or a value of a `split` column names; `datasets` writes "validation".
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}


class MissingSplitError(UserError):
    """A data set has no images of a split; `counts` are those of the splits that it has."""

    def __init__(self, where: str, split: str, counts: Mapping[str | None, int]) -> None:
        present = ", ".join(f"{name!r} ({count:,})" for name, count in counts.items())
        missing = f" of split {split!r}; it has {present}" if counts else ""
        super().__init__(f"{where} has no images{missing}")


class ImageSource(Protocol):
    """An image that is not a file of its own: a drawn scene or a cell of a table. It can be pickled."""

    @property
    def num_bytes(self) -> int:
        """The length of what `read` returns, known without reading it."""

    def read(self) -> bytes:
        """Return the bytes that define the image."""

    def load(self) -> Image.Image:
        """Decode or draw the image as upright RGB; an UnreadableImageError if it does not decode."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and its captions. Pixels are read only by `load`.

    Args:
        name: Unique within the data set: the file's path below the image root, or the number of the scene
            or row.
        captions: Cleaned by `clean_caption`, none of them empty.
        source: The image file, or another source of the image.
        image_id: The data set's own number of the image, used in result files. None if it has none.
        domain: "in-domain", "near-domain" or "out-domain" of NoCaps. None for other data sets.
        split: The split that the data set states, or None.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | ImageSource
    image_id: int | None = None
    domain: str | None = None
    split: str | None = field(default=None, compare=False)

    def load(self) -> Image.Image:
        """Read the image as upright RGB.

        Raises:
            UnreadableImageError: The image does not decode; see `load_image`.
        """
        return load_image(self.source) if isinstance(self.source, Path) else self.source.load()


def clean_caption(text: str) -> str:
    """Replace each run of white space, line breaks included, by one space, and strip both ends.

    A lone surrogate, which JSON can hold and tokenizers reject, becomes a question mark.
    """
    return " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Clean each caption and drop the empty ones."""
    return tuple(cleaned for text in texts if (cleaned := clean_caption(text)))


def parse_file_name(value: Any, where: str, key: str, absolute: bool = False) -> str:
    """Check the name of an image file in a data set, and return it without redundant parts.

    Args:
        value: The name. It must be text, not a URL, and stay inside the folder that it is relative to.
        where: The row, for the message.
        key: The field or column, for the message.
        absolute: Whether an absolute path is allowed.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key!r} must be a file name, got {value!r}")
    if "://" in value:
        raise UserError(f"{where}: {key!r} is a URL, {value!r}: download the images and name their files")
    # A downloaded data set must not read files outside its folder, on any system. People's own tables hold
    # absolute paths.
    name = PurePosixPath(value).as_posix()  # without the "./" that can precede a Windows path
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    leads_out = ".." in PureWindowsPath(name).parts  # a Windows path splits at / and at \
    if (is_absolute and not absolute) or (leads_out and not is_absolute):
        raise UserError(f"{where}: {key!r} must stay inside the folder, got {value!r}")
    return name


def parse_split(value: Any, where: str) -> str | None:
    """Return the split that a row names, or None if its `split` is None or empty."""
    if value is None or value == "":
        return None
    if not (isinstance(value, str) and value in SPLIT_NAMES):
        raise UserError(f"{where}: 'split' must be train, val or test, got {value!r}")
    return SPLIT_NAMES[value]


def check_images_exist(images: Sequence[CaptionedImage]) -> None:
    """Refuse images whose file is missing, and warn about empty files, before training begins.

    An empty file counts as an unreadable image: training names it and skips it.

    Raises:
        FileNotFoundError: Files are missing. The message has their number and the first three.
    """
    sizes = {image.source: _file_size(image.source) for image in images if isinstance(image.source, Path)}
    missing = [path for path, size in sizes.items() if size is None]
    empty = [path for path, size in sizes.items() if size == 0]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(images):,} images are missing ({first_names(missing)}): unpack them "
            "there, or give --image_root, the folder that their names are relative to"
        )
    if empty:
        text = "%s of %s images are empty or not files (%s): unpack or copy them again"
        logger.warning(text, f"{len(empty):,}", f"{len(images):,}", first_names(empty))


def _file_size(path: Path) -> int | None:
    """Return the size of a file, 0 for a folder, pipe or device, None if nothing is there."""
    if path.is_file():
        return path.stat().st_size
    return 0 if path.exists() else None


def first_names(names: Sequence[str | Path], count: int = 3) -> str:
    """List the first few of many names, for a message."""
    return ", ".join(printable(str(name)) for name in names[:count]) + (", ..." if len(names) > count else "")
