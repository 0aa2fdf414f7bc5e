"""Datasets of the library `datasets`, whose tables can contain the images."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import UserError
from .columns import CaptionedImage, codes_of
from .records import MissingSplitError
from .splits import held_out_split, split_of, split_of_folder
from .tables import TableColumns, TableSettings, parse_rows

_STATE_FILES = ("dataset_dict.json", "state.json", "dataset_info.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", re.ASCII)
_TAIL = 16  # bytes of an image that are compared before the others: the end of PNG data has a checksum


def is_hub_name(text: str) -> bool:
    """Return whether a string has the form "org/name" or "org/name:config"."""
    return _HUB_NAME.fullmatch(text) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in _STATE_FILES)


def has_parquet(folder: Path) -> bool:
    """Return whether a folder contains Parquet files, at any depth."""
    return any(glob.iglob("**/*.parquet", root_dir=folder, recursive=True))


class Entries(NamedTuple):
    """The entries of a dataset, and the images that are in a table."""

    images: Iterable[CaptionedImage]
    content: datasets.Dataset | None = None  # with an image column, `content`, that has a row for each entry


def read_hf_dataset(source: str, splits: Sequence[str], settings: TableSettings) -> Entries:
    """Read splits of a dataset with the library `datasets`, in the order of its rows.

    A row has a caption or a list of captions, and an image or the name of its file. Rows with the same image
    (the same file name, or the same bytes and path) get the same name.

    The splits of the dataset are found by their names; see `split_of_folder`. If there is only one split,
    named "train" or differently, a column `split` may have the split of each row.

    Args:
        source: A Parquet file; a folder of Parquet files, whose names or folders contain the split, which is
            otherwise "train"; a folder written by `save_to_disk`; or the Hub id of a dataset, "org/name" or
            "org/name:config".
        splits: The requested splits, or "all".
        settings: The columns; by default the image column is also found by its type.

    Raises:
        UserError: `datasets` cannot read `source`, a column is missing, or a row has no image.
    """
    path = Path(source)
    folders = [path if path.is_dir() else path.parent] if path.exists() else []
    folders = folders if settings.image_root is None else [settings.image_root]
    tables = _choose_tables(_load_tables(source), splits, source)
    parts = [
        _read_table(table, name, f"{source}, {name}", settings, folders, stated)
        for name, (table, stated) in tables.items()
    ]
    content = datasets.concatenate_datasets([images for _, images in parts])
    has_bytes = pc.struct_field(content.data.table["content"], "bytes").null_count < len(content)
    return Entries(itertools.chain(*(entries for entries, _ in parts)), content if has_bytes else None)


def _choose_tables(
    tables: dict[str, datasets.Dataset], splits: Sequence[str], source: str
) -> dict[str, tuple[datasets.Dataset, str | None]]:
    """Choose the tables to read, with the split of their rows or None if rows may have a `split`."""
    if len(tables) == 1:
        ((only, table),) = tables.items()
        if (split_of_folder(only) or "train") == "train" or "split" in table.column_names:
            return {only: (table, None)}
    named = {name: split_of_folder(name) or name for name in tables}
    chosen = [name for name, split in named.items() if "all" in splits or split in splits]
    for split in splits:
        if len(several := [name for name in chosen if named[name] == split]) > 1:
            raise UserError(f"{source} has several splits named {split!r}: {', '.join(several)}. Keep one")
    if not chosen:
        raise MissingSplitError(source, splits[0], {name: len(table) for name, table in tables.items()})
    return {name: (tables[name], named[name]) for name in chosen}


def _load_tables(source: str) -> dict[str, datasets.Dataset]:
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
    if path.is_file():
        return {held_out_split(path) or "train": [glob.escape(str(path))]}
    files: dict[str, list[str]] = {}
    for name in sorted(glob.glob("**/*.parquet", root_dir=path, recursive=True)):
        split = split_of(name.replace(os.sep, "/")) or "train"
        files.setdefault(split, []).append(glob.escape(str(path / name)))
    return files


def _holds_images(feature: Any) -> bool:
    # Tables written by other libraries have the bytes, but not the type.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _read_table(
    table: datasets.Dataset,
    name: str,
    where: str,
    settings: TableSettings,
    folders: Sequence[Path],
    split: str | None,
) -> tuple[Iterator[CaptionedImage], datasets.Dataset]:
    """Return the entries of a table, with an empty source if the image is in the table, and all images."""
    typed = [column for column, feature in table.features.items() if _holds_images(feature)]
    given = typed[0] if settings.image_column is None and len(typed) == 1 else settings.image_column
    settings = TableSettings(None, given, settings.caption_column)
    try:
        columns = TableColumns.find(table.column_names, settings)
        content = _image_column(table, columns.image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    names, in_table = _image_names(content.data.table[columns.image], name)
    if not folders and len(files := names.filter(pc.invert(in_table)).drop_null()):
        raise UserError(f"{where} has file names, such as {files[0]}: give --image_root, the files' folder")
    others = table.select_columns([column for column in columns[1:] if column is not None]).data.table
    batches = others.append_column(columns.image, names).to_batches(max_chunksize=1000)
    rows = enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches))
    settings = replace(settings, image_column=columns.image)
    entries = parse_rows(rows, f"{where}[{{}}]".format, settings, folders, split=split)
    flags = zip(entries, in_table.to_numpy(), strict=True)
    sources = (replace(entry, source=b"") if is_in_table else entry for entry, is_in_table in flags)
    return sources, content.rename_column(columns.image, "content")


def _image_column(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return a column of structs with `bytes` and `path`; a file name becomes an image without bytes."""
    try:
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # including Arrow's errors
        raise UserError(
            f"column {column!r} is of type {table.features[column]}, expected images or file names: select "
            "another column with --image_column"
        ) from error


def _image_names(images: pa.ChunkedArray, table: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return the name of each image, and whether its bytes are in the table.

    The name of an image file is its path. The name of other images is `table[row]`, with the first row that
    has the same path and bytes: `datasets` keeps only the file name of the path. All bytes are read only of
    images that have the same path, length and end.
    """
    content, paths = pc.struct_field(images, "bytes"), pc.struct_field(images, "path")
    in_table = pc.is_valid(content)
    parts = (
        paths.cast(pa.binary()),
        pc.binary_length(content).cast(pa.string()).cast(pa.binary()),
        pc.binary_slice(content, -_TAIL, None),
    )
    codes = codes_of(pc.binary_join_element_wise(*parts, b"/", null_handling="replace"))
    similar = np.flatnonzero((np.bincount(codes)[codes] > 1) & in_table.to_numpy())
    digests = (b"%d/" % codes[row] + hashlib.sha256(content[row].as_py()).digest() for row in similar)
    exact = codes_of(pa.chunked_array([pa.array(digests, pa.binary())]))
    first = np.arange(len(images))
    first[similar] = similar[np.unique(exact, return_index=True)[1]][exact]
    numbered = pc.binary_join_element_wise(f"{table}[", pa.array(first).cast(pa.string()), "]", "")
    return pc.if_else(in_table, numbered, paths), in_table
