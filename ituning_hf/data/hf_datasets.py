"""What the library `datasets` reads: Parquet files, folders it has saved, data sets of the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .records import CaptionedImage, clean_captions
from .rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, find_column, join_rows
from .splits import DEFAULT_VAL_SHARE, SPLIT_NAMES, MissingSplitError, parse_split, select_split
from .table_images import TableImage, holds_images, read_column, read_images

_STATE_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)
_NamedSource = tuple[str, Path | TableImage]


def is_hub_name(text: str) -> bool:
    """Say whether a text has the form of a Hub name: "org/name" or "org/name:config"."""
    return _HUB_NAME.fullmatch(text) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Say whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _STATE_FILES)


def has_parquet(folder: Path) -> bool:
    """Say whether a folder has Parquet files, at any depth."""
    return any(folder.rglob("*.parquet"))


def read_hf_dataset(
    source: str | os.PathLike[str],
    split: str,
    *,
    image_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    val_share: float = DEFAULT_VAL_SHARE,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> list[CaptionedImage]:
    """Read one split by the library `datasets`, in the order of its rows.

    Captions are read now, a string or a list of strings for each row. Images stay on disk until
    they are asked for. Rows of the same image (the same file name, or the same bytes) are joined.

    A data set's splits "train", "validation" (or "val") and "test" are taken as they are. Where it
    has but one, and that is neither of the latter two, a column `split` says of which split each
    row is; without it "val" is taken by lot, from the rows' file names or else their positions, so
    that rows can be appended; see `select_split`.

    Args:
        source: A Parquet file; a folder with such files, each of the split that its own or its
            folder's name says, otherwise "train"; a folder that `save_to_disk` wrote; or
            "org/name" or "org/name:config" for a data set of the Hub.
        split: "train", "val" or "test".
        image_root: The folder that file names are relative to, where the images are not inside the
            rows; the data set's own folder by default.
        seed: Decides which images a "val" by lot takes.
        val_share: The probability with which it takes an image, between 0 and 1.
        image_column: Found by its type or the names of `IMAGE_COLUMNS` by default.
        caption_column: Found by the names of `CAPTION_COLUMNS` by default.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: It cannot read `source`, there are no such columns, a row has no image, or
            `split` has no images or some without a caption.
    """
    parts = _load_parts(source)
    part, given = _choose_part(parts, split, source)
    table, where = parts[part], f"{source}, {part}"
    image, caption = _find_columns(table, image_column, caption_column, where)
    images = read_images(table, image, part, where, _file_root(source, image_root))
    rows = _to_rows(table, images, caption, given, where)
    return select_split(join_rows(rows), split, where, seed, val_share)


def _load_parts(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Open a data set: its tables, by the names that its splits have there."""
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
            name, _, config = str(source).partition(":")
            loaded = datasets.load_dataset(name, config or None)
    # It raises whatever the file system, Arrow, the network and its own modules raise.
    except Exception as error:
        problem = (
            "cannot read" if path.exists() else "nothing is here, and the Hub did not give a data set, at"
        )
        raise ValueError(f"{problem} {str(source)!r}: {' '.join(str(error).split())}") from error
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {name: table.with_format(None) for name, table in parts.items()}


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Group files by the last split's name among the words of their path."""
    if path.is_file():
        return {"train": [glob.escape(str(path))]}
    files: dict[str, list[str]] = {}
    for file in sorted(path.rglob("*.parquet")):
        words = re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())
        split = next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")
        files.setdefault(split, []).append(glob.escape(str(file)))
    return files


def _choose_part(parts: dict[str, Any], split: str, source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Find the table to read, and the split that all of it is; None where its rows must tell."""
    if len(parts) == 1:
        (only,) = parts
        if SPLIT_NAMES.get(only, "train") == "train":
            return only, None
    found = [name for name in parts if SPLIT_NAMES.get(name) == split]
    if len(found) != 1:
        present = ", ".join(f"{name!r} ({len(table)})" for name, table in parts.items())
        error = ValueError if found else MissingSplitError
        raise error(f"{source} must have one split {split!r}; it has {present}")
    return found[0], split


def _find_columns(
    table: Any, image_column: str | None, caption_column: str | None, where: str
) -> tuple[str, str]:
    names = table.column_names
    typed = [name for name, feature in table.features.items() if holds_images(feature)]
    if image_column is None and len(typed) == 1:
        image_column = typed[0]
    return (
        find_column(names, image_column, IMAGE_COLUMNS, "image_column", where),
        find_column(names, caption_column, CAPTION_COLUMNS, "caption_column", where),
    )


def _file_root(source: str | os.PathLike[str], image_root: str | os.PathLike[str] | None) -> Path | None:
    if image_root is not None:
        return Path(image_root)
    path = Path(source)
    return path if path.is_dir() else path.parent if path.is_file() else None


def _to_rows(
    table: Any, images: Iterable[_NamedSource], caption_column: str, given: str | None, where: str
) -> Iterator[tuple[str, Row]]:
    captions = read_column(table, caption_column)
    own = next((name for name in table.column_names if name.lower() == "split"), None)
    splits = [given] * len(table) if given is not None or own is None else read_column(table, own)
    for position, ((name, source), texts, split) in enumerate(zip(images, captions, splits, strict=True)):
        at = f"{where}[{position}]"
        yield at, Row(name, _parse_captions(texts, caption_column, at), source, parse_split(split, at))


def _parse_captions(value: Any, column: str, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {column!r} must be a string or a list of strings, got {value!r}")
    return clean_captions(texts)
