"""Tables of images and captions: CSV files, Parquet files, and datasets of the library `datasets`."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from ..utils.errors import UserError
from ..utils.files import read_utf8
from .columns import CaptionedImage
from .records import SPLIT_NAMES, MissingSplitError, clean_captions, parse_file_name, parse_split

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "filepath")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "comment")

_DELIMITERS = ",\t;|"  # in order of preference if they are equally frequent
_STATE_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)


def find_column(
    columns: Sequence[str], given: str | None, usual: Sequence[str], option: str, where: object
) -> str:
    """Return the column that the user gave by an option, or the only one with one of the usual names."""
    listed = ", ".join(map(repr, columns)) or "none"
    if given is not None:
        if given not in columns:
            raise UserError(f"{where} has no column {given!r} (--{option}); its columns are {listed}")
        return given
    found = [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        problem = f"several such columns, {', '.join(map(repr, found))}"
        problem = problem if found else f"no column named {' or '.join(usual)}"
        raise UserError(f"{where} has {problem}: select one with --{option} ({listed})")
    return found[0]


def read_csv(
    path: Path, image_root: Path | None, image_column: str | None, caption_column: str | None
) -> Iterator[CaptionedImage]:
    """Read a UTF-8 text table with one row per caption.

    The first line has the column names. The delimiter is a comma, tab, semicolon or bar, whichever is most
    frequent in this line. Fields may be quoted. A column `split`, if there is one, has the split of each row.

    Args:
        path: The file.
        image_root: The folder that file names are relative to; by default the folder of the table.
        image_column: The column of file names; by default found by `IMAGE_COLUMNS`.
        caption_column: The column of captions; by default found by `CAPTION_COLUMNS`.

    Raises:
        UserError: A column is missing, or a row is malformed (the message has its line number).
    """
    rows = _read_rows(path)
    columns = [name.strip() for name in next(rows, ("", []))[1]]
    if not columns:
        raise UserError(f"{path} is empty: its first line must contain the column names")
    image = columns.index(find_column(columns, image_column, IMAGE_COLUMNS, "image_column", path))
    caption = columns.index(find_column(columns, caption_column, CAPTION_COLUMNS, "caption_column", path))
    split = next((i for i, name in enumerate(columns) if name.lower() == "split"), None)
    for where, fields in rows:
        if len(fields) > len(columns):
            raise UserError(
                f"{where}: {len(fields)} fields for {len(columns)} columns: put fields that contain the "
                'delimiter in double quotes ("")'
            )
        fields += [""] * (len(columns) - len(fields))  # Flickr30k's results.csv lacks a field in one row
        name = parse_file_name(fields[image].strip(), where, columns[image], absolute=True)
        stated = None if split is None else parse_split(fields[split].strip(), where)
        source = (image_root or path.parent) / name
        yield CaptionedImage(name, clean_captions([fields[caption]]), source, split=stated)


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the position and the fields of each non-empty row, including the header."""
    text = read_utf8(path)
    header = text.lstrip().partition("\n")[0]
    # strict: otherwise a misplaced quotation mark would silently consume the following rows
    reader = csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=header.count), strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield f"{path}, line {reader.line_num}", fields
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def is_hub_name(text: str) -> bool:
    """Return whether a string has the form "org/name" or "org/name:config"."""
    return _HUB_NAME.fullmatch(text) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in _STATE_FILES)


def has_parquet(folder: Path) -> bool:
    """Return whether a folder contains Parquet files, at any depth."""
    return any(folder.rglob("*.parquet"))


def read_hf_dataset(
    source: str, split: str, image_root: Path | None, image_column: str | None, caption_column: str | None
) -> Iterator[CaptionedImage]:
    """Read one split of a dataset with the library `datasets`, in the order of its rows.

    A row has a caption or a list of captions. Images are read from disk when they are needed. Rows with the
    same image (the same file name, or the same bytes) get the same name.

    The splits of the dataset are found by the names in `SPLIT_NAMES`. If there is only one
    split, named "train" or differently from these, a column `split` may have the split of each row.

    Args:
        source: A Parquet file; a folder of Parquet files, whose names or folders contain the split, which is
            otherwise "train"; a folder written by `save_to_disk`; or the Hub id of a dataset, "org/name" or
            "org/name:config".
        split: The requested split.
        image_root: The folder that file names are relative to, if rows do not contain images; by default the
            folder of the dataset.
        image_column: The column of images; by default found by its type or by `IMAGE_COLUMNS`.
        caption_column: The column of captions; by default found by `CAPTION_COLUMNS`.

    Raises:
        UserError: `datasets` cannot read `source`, a column is missing, or a row has no image.
    """
    tables = _load_tables(source)
    table_name, stated = _choose_table(tables, split, source)
    table, where = tables[table_name], f"{source}, {table_name}"
    typed = [name for name, feature in table.features.items() if _holds_images(feature)]
    if image_column is None and len(typed) == 1:
        image_column = typed[0]
    columns = table.column_names
    image_column = find_column(columns, image_column, IMAGE_COLUMNS, "image_column", where)
    caption_column = find_column(columns, caption_column, CAPTION_COLUMNS, "caption_column", where)
    path = Path(source)
    if image_root is None and path.exists():
        image_root = path if path.is_dir() else path.parent
    images = _read_images(table, image_column, table_name, where, image_root)
    captions = _read_column(table, caption_column)
    split_column = next((name for name in columns if name.lower() == "split"), None)
    splits = [stated] * len(table)
    if stated is None and split_column is not None:
        splits = _read_column(table, split_column)
    rows = zip(images, captions, splits, strict=True)
    for position, ((name, image), texts, row_split) in enumerate(rows):
        at = f"{where}[{position}]"
        captions_of_row = _parse_captions(texts, caption_column, at)
        yield CaptionedImage(name, captions_of_row, image, split=parse_split(row_split, at))


def _choose_table(tables: dict[str, Any], split: str, source: str) -> tuple[str, str | None]:
    """Choose the table to read; return its name, and its split or None if rows may have a `split`."""
    if len(tables) == 1:
        (only,) = tables
        if SPLIT_NAMES.get(only, "train") == "train":
            return only, None
    names = [name for name in tables if SPLIT_NAMES.get(name) == split]
    if len(names) > 1:
        raise UserError(f"{source} has several splits named {split!r}: {', '.join(names)}. Keep one")
    if not names:
        raise MissingSplitError(source, split, {name: len(table) for name, table in tables.items()})
    return names[0], split


def _load_tables(source: str) -> dict[str, Any]:
    """Open a dataset; return the table of each of its splits."""
    path = Path(source)
    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(path)
        elif path.exists():
            loaded = datasets.load_dataset("parquet", data_files=_parquet_files(path))
        else:
            name, _, config = source.partition(":")
            loaded = datasets.load_dataset(name, config or None)
    # `datasets` raises exceptions of the file system, Arrow, the network and its own modules.
    except Exception as error:
        where = "cannot read" if path.exists() else "there is no such path and no such dataset on the Hub:"
        raise UserError(f"{where} {source!r}: {' '.join(str(error).split())}") from error
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {name: table.with_format(None) for name, table in tables.items()}


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Group files by the last split name in their paths. `datasets` would also read other files."""
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        words = re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())
        split = next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")
        files.setdefault(split, []).append(glob.escape(str(file)))
    return files


def _holds_images(feature: Any) -> bool:
    # Tables written by other libraries have the bytes, but not the type.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _read_column(table: Any, column: str) -> list[Any]:
    """Read one column of a table without reading the others."""
    return table.select_columns([column])[:][column]


def _parse_captions(value: Any, column: str, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {column!r} must be a string or a list of strings, got {value!r}")
    return clean_captions(texts)


def _read_images(
    table: Any, column: str, table_name: str, where: str, root: Path | None
) -> Iterator[tuple[str, Path | bytes]]:
    """Yield the name and the source of each row's image; rows of the same image have the same name.

    Images are the same if both their paths and their bytes are equal. Paths are not sufficient, because
    `datasets` keeps only the file name.
    """
    try:  # converts file names to images without bytes
        table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # including Arrow's errors
        raise UserError(
            f"{where}: column {column!r} is of type {table.features[column]}, expected images or file names: "
            "select another column with --image_column"
        ) from error
    cells = list(_read_paths_and_sizes(table, column))
    counts = Counter(cells)
    first_rows: dict[Any, int] = {}
    for position, (path, size) in enumerate(cells):
        at = f"{where}[{position}]"
        if size is None:
            file_name = parse_file_name(path, at, column, absolute=True)
            if root is None:
                raise UserError(f"{at}: {column!r} is a file name: give --image_root, the files' folder")
            yield file_name, root / file_name
        else:
            image = table[position][column]["bytes"]
            # An image with a unique path and size is not a duplicate: its bytes need not be read.
            content = hashlib.sha256(image).digest() if counts[path, size] > 1 else b""
            yield f"{table_name}[{first_rows.setdefault((path, size, content), position)}]", image


def _read_paths_and_sizes(images: Any, column: str) -> Iterator[tuple[str | None, int | None]]:
    """Read the path and the number of bytes of each image, without reading the bytes."""
    for batch in images.with_format("arrow").iter(batch_size=1000):
        for chunk in batch.column(column).chunks:
            paths = pc.struct_field(chunk, "path").to_pylist()
            sizes = pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
            yield from zip(paths, sizes, strict=True)
