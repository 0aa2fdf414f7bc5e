"""Tables of images and captions as text: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from .records import CaptionedImage, clean_captions
from .rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, find_column, join_rows, parse_file_name
from .splits import DEFAULT_VAL_SHARE, parse_split, select_split

_DELIMITERS = ",\t;|"  # the first wins where several are equally frequent


def read_csv(
    csv_path: str | os.PathLike[str],
    split: str,
    *,
    image_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    val_share: float = DEFAULT_VAL_SHARE,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> list[CaptionedImage]:
    """Read one split of a table with a row for each caption, in the order of its images.

    The first line names the columns. Fields are separated by whichever of comma, tab, semicolon
    and bar is most frequent in it, and may be quoted. Rows of the same image are joined. A column
    `split` says of which split a row is; without it "val" is taken by lot; see `select_split`.

    Args:
        csv_path: A UTF-8 text.
        split: "train", "val" or "test".
        image_root: The folder that the image names are relative to; the file's own by default.
        seed: Decides which images a "val" by lot takes.
        val_share: The probability with which it takes an image, between 0 and 1.
        image_column: The column of file names; found by the names of `IMAGE_COLUMNS` by default.
        caption_column: The column of captions; found by the names of `CAPTION_COLUMNS` by default.

    Raises:
        ValueError: The file is empty, no such table or has no such columns, a row is malformed
            (named by its line), or `split` has no images or some without a caption.
    """
    path = Path(csv_path)
    root = path.parent if image_root is None else Path(image_root)
    rows = _read_rows(path, root, image_column, caption_column)
    return select_split(join_rows(rows), split, path, seed, val_share)


def _read_rows(
    path: Path, root: Path, image_column: str | None, caption_column: str | None
) -> Iterator[tuple[str, Row]]:
    table = _read_table(path)
    _, header = next(table, ("", []))
    if not header:
        raise ValueError(f"{path} is empty: its first line must name the columns")
    columns = [name.strip() for name in header]
    image = columns.index(find_column(columns, image_column, IMAGE_COLUMNS, "image_column", path))
    caption = columns.index(find_column(columns, caption_column, CAPTION_COLUMNS, "caption_column", path))
    split = next((i for i, name in enumerate(columns) if name.lower() == "split"), None)
    for where, fields in table:
        if len(fields) > len(columns):
            raise ValueError(
                f"{where}: {len(fields)} fields for {len(columns)} columns; put a field that holds the "
                'separator in double quotes ("")'
            )
        fields += [""] * (len(columns) - len(fields))  # Flickr30k's results.csv has such a row
        name = parse_file_name(fields[image].strip(), where, columns[image], absolute=True)
        given = None if split is None else parse_split(fields[split].strip(), where)
        yield where, Row(name, clean_captions([fields[caption]]), root / name, given)


def _read_table(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the fields of each row, the names of the columns first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    # strict: a quotation mark out of place would swallow the rows that follow
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield f"{path}, line {reader.line_num}", fields
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
