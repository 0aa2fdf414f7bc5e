"""What the readers of tables share: rows of an image and its captions, and their columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .records import CaptionedImage, ImageSource

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "filepath")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "comment")


@dataclass(frozen=True, slots=True)
class Row:
    """What a data set says of one image, before a split is chosen.

    Args:
        name: Becomes the record's; decides the image's lot where splits are drawn.
        captions: Cleaned; there may be none.
        source: As of a record.
        split: "train", "val" or "test", or None where the data set does not say.
        image_id: As of a record.
        domain: As of a record.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | ImageSource
    split: str | None = None
    image_id: int | None = None
    domain: str | None = None

    def to_record(self) -> CaptionedImage:
        """Leave the split out."""
        return CaptionedImage(self.name, self.captions, self.source, self.image_id, self.domain)


def join_rows(rows: Iterable[tuple[str, Row]]) -> list[Row]:
    """Join the captions of rows of the same name, in the order in which the names first come.

    Args:
        rows: Each with its place in the data set, for the message.

    Raises:
        ValueError: The rows of one image are in two splits.
    """
    captions: dict[str, list[str]] = {}
    first: dict[str, Row] = {}
    for where, row in rows:
        if row.split != first.setdefault(row.name, row).split:
            raise ValueError(f"{where}: {row.name!r} is in two splits")
        captions.setdefault(row.name, []).extend(row.captions)
    return [replace(row, captions=tuple(captions[name])) for name, row in first.items()]


def parse_file_name(value: Any, where: str, key: str, absolute: bool = False) -> str:
    """Check the name of an image file that a data set gives.

    Args:
        value: What is given.
        where: The row, for the message.
        key: The field or column, for the message.
        absolute: Whether a whole path is fine too.

    Returns:
        The name with forward slashes and without needless parts.

    Raises:
        ValueError: It is no text, a URL, or leads out of the folder that it is relative to.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key!r} must be a file's name, got {value!r}")
    if "://" in value:
        raise ValueError(f"{where}: {key!r} is a URL, {value!r}: download the images and name their files")
    # A folder from elsewhere must not read files outside of itself, on any system. Tables that people make
    # of their own files hold whole paths.
    name = PurePosixPath(value).as_posix()  # without the "./" before a path of Windows
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    leads_out = ".." in PureWindowsPath(name).parts  # a Windows path splits at / and at \
    if (is_absolute and not absolute) or (leads_out and not is_absolute):
        raise ValueError(f"{where}: {key!r} must stay inside the folder, got {value!r}")
    return name


def find_column(
    columns: Sequence[str], given: str | None, usual: Sequence[str], option: str, where: object
) -> str:
    """Find the column to read.

    Args:
        columns: Those that are there.
        given: The one that the user named, if any.
        usual: Names, in lower case, that tell the column where the user named none.
        option: The setting that names it: "image_column" or "caption_column".
        where: The file or folder, for the message.

    Raises:
        ValueError: The named column is not there, or not exactly one has a usual name.
    """
    listed = ", ".join(map(repr, columns)) or "none"
    if given is not None:
        if given not in columns:
            raise ValueError(f"{where} has no column {given!r}, as {option} says; it has {listed}")
        return given
    found = [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        problem = f"the columns {', '.join(map(repr, found))}" if found else f"none of {', '.join(usual)}"
        raise ValueError(f"{where} has {problem}: name one of its columns with {option} ({listed})")
    return found[0]
