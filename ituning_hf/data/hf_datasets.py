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
import pyarrow.dataset

from ..utils.errors import UserError
from .columns import CaptionedImage, first_rows
from .records import MissingSplitError
from .splits import held_out_split, split_of, split_of_folder
from .tables import TableColumns, TableSettings, parse_rows

_STATE_FILES = ("dataset_dict.json", "state.json")
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
            # Without buffers: Arrow would hold all of a file.
            options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
            files = _parquet_files(path)
            loaded = datasets.load_dataset("parquet", data_files=files, fragment_scan_options=options)
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


def _read_table(
    table: datasets.Dataset,
    name: str,
    where: str,
    settings: TableSettings,
    folders: Sequence[Path],
    split: str | None,
) -> tuple[Iterator[CaptionedImage], datasets.Dataset]:
    """Return the entries of a table, with an empty source if the image is in the table, and all images."""
    # Tables written by other libraries have the bytes of images, but not the type.
    types = table.features.items()
    typed = [n for n, t in types if isinstance(t, datasets.Image) or (isinstance(t, dict) and "bytes" in t)]
    given = typed[0] if settings.image_column is None and len(typed) == 1 else settings.image_column
    settings = replace(settings, image_column=given)
    try:
        columns = TableColumns.find(table.column_names, settings)
        content = _image_column(table, columns.image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    images = content.data.table[columns.image]
    first, paths = _image_rows(images), pc.struct_field(images, "path")
    if not folders and len(files := paths.filter(pa.array(first < 0)).drop_null()):
        raise UserError(f"{where} has file names, such as {files[0]}: give --image_root, the files' folder")
    read: pa.Table = table.data.table.select([*filter(None, columns)])
    batches = read.set_column(0, columns.image, paths).to_batches(max_chunksize=1000)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches)):
            if first[number] >= 0:  # `datasets` keeps only the file name of a path
                row[columns.image] = f"{name}[{first[number]}]"
            yield number, row

    settings = replace(settings, image_column=columns.image)
    entries = parse_rows(rows(), f"{where}[{{}}]".format, settings, folders, split=split)
    numbered = zip(entries, first, strict=True)
    sources = (replace(entry, source=b"") if number >= 0 else entry for entry, number in numbered)
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


def _image_rows(images: pa.ChunkedArray) -> np.ndarray:
    """Return the first row with the same path and bytes for each image in the table, and -1 for files.

    All bytes are read only of images that have the same path, length and end.
    """
    content = pc.struct_field(images, "bytes")
    in_table = content.is_valid().to_numpy()

    def keys(chunk: pa.Array) -> pa.Array:
        data, paths = (pc.struct_field(chunk, name) for name in ("bytes", "path"))
        length = pc.binary_length(data).cast(pa.string())
        parts = (part.cast(pa.binary()) for part in (paths, length, pc.binary_slice(data, -_TAIL, None)))
        return pc.binary_join_element_wise(*parts, b"/", null_handling="replace")

    alike = first_rows(map(keys, images.chunks))
    similar = np.flatnonzero((np.bincount(alike)[alike] > 1) & in_table)
    digests = (b"%d/" % alike[row] + hashlib.sha256(content[row].as_py()).digest() for row in similar)
    first = np.where(in_table, np.arange(len(images)), -1)
    first[similar] = similar[first_rows([pa.array(digests, pa.binary())])]
    return first
