"""Tables of images and captions: CSV files, Parquet files, and data sets of the library `datasets`."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import UserError
from ..utils.files import read_utf8
from .images import load_image
from .records import (
    SPLIT_NAMES,
    CaptionedImage,
    MissingSplitError,
    clean_captions,
    parse_file_name,
    parse_split,
)

if TYPE_CHECKING:
    from PIL import Image

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "filepath")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "comment")

_DELIMITERS = ",\t;|"  # of equally frequent ones, the first is used
_STATE_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)


def find_column(
    columns: Sequence[str], given: str | None, usual: Sequence[str], option: str, where: object
) -> str:
    """Return the column that the user named with an option, or else the only one with a usual name."""
    listed = ", ".join(map(repr, columns)) or "none"
    if given is not None:
        if given not in columns:
            raise UserError(f"{where} has no column {given!r}, as --{option} says; it has {listed}")
        return given
    found = [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        problem = f"the columns {', '.join(map(repr, found))}" if found else f"none of {', '.join(usual)}"
        raise UserError(f"{where} has {problem}: name one of its columns with --{option} ({listed})")
    return found[0]


def read_csv(
    path: Path, image_root: Path | None, image_column: str | None, caption_column: str | None
) -> Iterator[CaptionedImage]:
    """Read a UTF-8 text table with a row for each caption.

    The first line names the columns. The delimiter is whichever of comma, tab, semicolon and bar is most
    frequent in it. Fields may be quoted. A column `split` states the split of each row.

    Args:
        path: The file.
        image_root: The folder that the image names are relative to; the file's own by default.
        image_column: The column of file names; found by `IMAGE_COLUMNS` by default.
        caption_column: The column of captions; found by `CAPTION_COLUMNS` by default.

    Raises:
        UserError: The file lacks the columns, or a row is malformed (the message has its line).
    """
    rows = _read_rows(path)
    columns = [name.strip() for name in next(rows, ("", []))[1]]
    if not columns:
        raise UserError(f"{path} is empty: its first line must name the columns")
    image = columns.index(find_column(columns, image_column, IMAGE_COLUMNS, "image_column", path))
    caption = columns.index(find_column(columns, caption_column, CAPTION_COLUMNS, "caption_column", path))
    split = next((i for i, name in enumerate(columns) if name.lower() == "split"), None)
    for where, fields in rows:
        if len(fields) > len(columns):
            raise UserError(
                f"{where}: {len(fields)} fields for {len(columns)} columns; put a field that contains the "
                'delimiter in double quotes ("")'
            )
        fields += [""] * (len(columns) - len(fields))  # Flickr30k's results.csv has such a row
        name = parse_file_name(fields[image].strip(), where, columns[image], absolute=True)
        stated = None if split is None else parse_split(fields[split].strip(), where)
        source = (image_root or path.parent) / name
        yield CaptionedImage(name, clean_captions([fields[caption]]), source, split=stated)


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the position and the fields of each row that is not empty, the header first."""
    text = read_utf8(path)
    header = text.lstrip().partition("\n")[0]
    # strict: a misplaced quotation mark would swallow the rows that follow
    reader = csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=header.count), strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield f"{path}, line {reader.line_num}", fields
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image whose file is a cell of a table."""

    table: Any  # a `datasets.Dataset` of one column of undecoded images; its pickle is the path of its file
    position: int
    name: str  # for messages
    num_bytes: int

    def read(self) -> bytes:
        """Return the image file."""
        (value,) = self.table[self.position].values()
        return value["bytes"]

    def load(self) -> Image.Image:
        """Decode the image; see `load_image`."""
        return load_image(self.read(), name=self.name)


def is_hub_name(text: str) -> bool:
    """Return whether a text has the form "org/name" or "org/name:config"."""
    return _HUB_NAME.fullmatch(text) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote a folder."""
    return any((folder / name).is_file() for name in _STATE_FILES)


def has_parquet(folder: Path) -> bool:
    """Return whether a folder has Parquet files, at any depth."""
    return any(folder.rglob("*.parquet"))


def read_hf_dataset(
    source: str, split: str, image_root: Path | None, image_column: str | None, caption_column: str | None
) -> Iterator[CaptionedImage]:
    """Read one split of a data set with the library `datasets`, in the order of its rows.

    A row has a caption or a list of captions. Images stay on disk until they are needed. Rows of the same
    image (the same file name, or the same bytes) have the same name.

    The splits "train", "validation" (or "val") and "test" of the data set are used. If its only split is
    "train" or has another name, a column `split` may state the split of each row.

    Args:
        source: A Parquet file; a folder of Parquet files, whose split is named by the file or its folder and
            is otherwise "train"; a folder that `save_to_disk` wrote; or "org/name" or "org/name:config" of a
            data set on the Hub.
        split: The split that the caller wants.
        image_root: The folder that file names are relative to, if the images are not inside the rows; the
            data set's own folder by default.
        image_column: Found by its type or by `IMAGE_COLUMNS` by default.
        caption_column: Found by `CAPTION_COLUMNS` by default.

    Raises:
        ImportError: `datasets` is not installed.
        UserError: `datasets` cannot read `source`, or there are no such columns, or a row has no image.
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
    """Choose the table to read; return its name and its split, which is None if its rows may state it."""
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
    """Open a data set; return the table of each of its splits."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"to read {source}, run: pip install 'ituning_hf[train]'") from error
    path = Path(source)
    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(path)
        elif path.exists():
            loaded = datasets.load_dataset("parquet", data_files=_parquet_files(path))
        else:
            name, _, config = source.partition(":")
            loaded = datasets.load_dataset(name, config or None)
    # `datasets` passes on the exceptions of the file system, Arrow, the network and its own modules.
    except Exception as error:
        where = "cannot read" if path.exists() else "no such path, and the Hub did not provide a data set, at"
        raise UserError(f"{where} {source!r}: {' '.join(str(error).split())}") from error
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {name: table.with_format(None) for name, table in tables.items()}


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Assign files to the last split that their path names. `datasets` would also read other files there."""
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        words = re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())
        split = next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")
        files.setdefault(split, []).append(glob.escape(str(file)))
    return files


def _holds_images(feature: Any) -> bool:
    from datasets import Image

    # Tables that other libraries wrote have the bytes without the type.
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def _read_column(table: Any, column: str) -> list[Any]:
    """Read one column of a table, and none of the others."""
    return table.select_columns([column])[:][column]


def _parse_captions(value: Any, column: str, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {column!r} must be a string or a list of strings, got {value!r}")
    return clean_captions(texts)


def _read_images(
    table: Any, column: str, table_name: str, where: str, root: Path | None
) -> Iterator[tuple[str, Path | TableImage]]:
    """Yield the name and the source of each row's image; rows of the same image have the same name.

    Images are the same if both their paths and their bytes are. Paths alone do not decide: `datasets` keeps
    only the last part of them.
    """
    from datasets import Image

    try:  # file names become images without bytes
        table = table.select_columns([column]).cast_column(column, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # Arrow's errors are among them
        raise UserError(
            f"{where}: column {column!r} is of type {table.features[column]}, expected images or file names: "
            "name another column with --image_column"
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
            image = TableImage(table, position, at, size)
            # A path and size that no other row has cannot be a repetition: its bytes need not be read.
            content = hashlib.sha256(image.read()).digest() if counts[path, size] > 1 else b""
            yield f"{table_name}[{first_rows.setdefault((path, size, content), position)}]", image


def _read_paths_and_sizes(images: Any, column: str) -> Iterator[tuple[str | None, int | None]]:
    """Read the path of each image and the number of its bytes, not the bytes."""
    import pyarrow.compute as pc

    for batch in images.with_format("arrow").iter(batch_size=1000):
        for chunk in batch.column(column).chunks:
            paths = pc.struct_field(chunk, "path").to_pylist()
            sizes = pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
            yield from zip(paths, sizes, strict=True)
