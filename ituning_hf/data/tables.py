"""Tables of images and captions: from rows to images."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from ..utils.errors import UserError
from .cells import CAPTION_COLUMNS, parse_captions
from .columns import CaptionedImage
from .image_ids import image_id_key, parse_image_id
from .records import find_folder, parse_file_name, parse_split
from .rows import describe_row, is_csv, read_rows
from .splits import held_out_split

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "filepath")
ID_COLUMNS = ("image_id", "img_id", "cocoid", "imgid")

_CAPTION_NUMBER = re.compile(r"(?<=\.)(\w+)#\d+$")  # Flickr8k.token.txt names "dog.jpg#0", "dog.jpg#1", ...


@dataclass(frozen=True)
class TableSettings:
    """The settings for tables; see `load_captioned_images`."""

    image_root: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    columns: str | None = None
    require_captions: bool | None = True

    def folders(self, path: Path) -> list[Path]:
        """Return the folders that file names in a file may be relative to."""
        return [self.image_root] if self.image_root else [path.parent, path.parent / "images"]


class TableColumns(NamedTuple):
    """The names of a table's columns that are read."""

    image: str
    caption: str | None
    split: str | None
    image_id: str | None

    @classmethod
    def find(cls, names: Sequence[str], settings: TableSettings) -> TableColumns:
        """Find the columns by the settings or usual names; raise UserError if there is not exactly one."""

        def usual(*wanted: str) -> str | None:
            return next((name for name in names if name.lower() in wanted), None)

        image = find_column(names, settings.image_column, IMAGE_COLUMNS, "image_column")
        caption, optional = settings.caption_column, settings.require_captions is None
        with suppress(*[UserError] if optional and caption is None else []):
            caption = find_column(names, caption, CAPTION_COLUMNS, "caption_column")
        return cls(
            image,
            caption,
            usual("split"),
            usual(*ID_COLUMNS),
        )


def find_column(columns: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """Return the column that the user gave by an option, or the only one with one of the usual names."""
    listed = ", ".join(map(repr, columns)) or "none"
    if given is not None:
        if given not in columns:
            raise UserError(f"there is no column {given!r} (--{option}); the columns are {listed}")
        return given
    found = [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        problem = f"there are several such columns, {', '.join(map(repr, found))}"
        problem = problem if found else f"there is no column named {' or '.join(usual)}"
        raise UserError(f"{problem}: select one with --{option} ({listed})")
    return found[0]


def parse_rows(
    rows: Iterable[tuple[int, dict[str, Any]]],
    describe: Callable[[int], str],
    settings: TableSettings,
    folders: Sequence[Path],
    *,
    parse_id: Callable[[Any], int | str | None] = parse_image_id,
    split: str | None = None,
    absolute: bool = True,
) -> Iterator[CaptionedImage]:
    """Parse the rows of a table: a caption or a list of captions, and the image.

    Args:
        rows: The numbers and fields of the rows.
        describe: Describes a row, given its number, for messages.
        settings: The columns; by default found by their names, in each row.
        folders: The folders that file names may be relative to; the first that has one of the first files.
        parse_id: Parses the image's id.
        split: The split of rows without one.
        absolute: Whether names may be absolute paths.

    Raises:
        UserError: A row is malformed, or has no such columns.
    """
    columns_of = functools.lru_cache(lambda names: TableColumns.find(names, settings))

    def name_of(row: dict[str, Any]) -> str:
        column = columns_of(tuple(row)).image
        name = parse_file_name(row[column], column, absolute)
        return _CAPTION_NUMBER.sub(r"\1", name) if "#" in name else name

    remaining, names = iter(rows), []
    head = list(itertools.islice(remaining, 100))
    with suppress(UserError):  # of a row that is parsed again below
        names = [name_of(row) for _, row in head]
    folder = os.fspath(find_folder(folders, names) or Path(*folders[:1]))
    for number, row in itertools.chain(head, remaining):
        try:
            name, columns = name_of(row), columns_of(tuple(row))
            if "\\" in name and not (PureWindowsPath(name).drive or os.path.lexists(f"{folder}/{name}")):
                name = name.replace("\\", "/")  # written on Windows
            yield CaptionedImage(
                name,
                () if columns.caption is None else parse_captions(row[columns.caption], columns.caption),
                os.path.join(folder, name),
                columns.image_id and parse_id(row[columns.image_id]),
                split=(columns.split and parse_split(row[columns.split])) or split,
            )
        except UserError as error:
            raise UserError(f"{describe(number)}: {error}") from error


def read_table(
    path: Path,
    settings: TableSettings,
    folders: Sequence[Path] = (),
    *,
    split: str | None = None,
    absolute: bool = True,
) -> Iterator[CaptionedImage]:
    """Read a file of rows in which images are file names; see `read_rows`.

    Args:
        path: A `.jsonl`, `.parquet` or CSV file.
        settings: The columns, and the folder of the images.
        folders: The folders that file names may be relative to; by default `image_root`, or the file's folder
            or `images` in it.
        split: As for `parse_rows`; by default the split that the names of the file and its folder state.
        absolute: As for `parse_rows`.

    Raises:
        UserError: A column is missing, or a row is malformed (the message has its line number).
    """

    def select(names: Sequence[str]) -> list[str]:
        return [name for name in TableColumns.find(names, settings) if name is not None]

    return parse_rows(
        read_rows(path, settings.columns, select, any_header=settings.require_captions is None),
        functools.partial(describe_row, path),
        settings,
        folders or settings.folders(path),
        parse_id=image_id_key if is_csv(path) else parse_image_id,
        split=split or held_out_split(path),
        absolute=absolute,
    )
