"""Where the captions of a collection go: a file of rows, or files beside the images.

A column of names has bytes, as file names are: they need not be valid Unicode.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..utils.errors import UserError
from ..utils.files import draft_of, parse_json, put_in_place
from ..utils.ranks import Rank
from .xmp import EMPTY_PACKET, get_description, set_description

TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
_CHUNK = 10_000  # rows in memory

Row = tuple[str, Sequence[str]]  # an image's name and its captions


def to_column(names: Iterable[str]) -> pa.Array:
    """Return an Arrow column of names, without a list of them."""
    chunks, encoded = [pa.array([], pa.large_binary())], map(os.fsencode, names)
    while chunk := list(itertools.islice(encoded, _CHUNK)):
        chunks.append(pa.array(chunk, pa.large_binary()))
    return pa.concat_arrays(chunks)


def to_names(column: pa.Array) -> Iterator[str]:
    """Yield the names in a column."""
    for start in range(0, len(column), _CHUNK):
        yield from map(os.fsdecode, column.slice(start, _CHUNK).to_pylist())


class Output:
    """A place for captions. Captions that exist there stay, unless `overwrite`.

    Args:
        work: The folder for unfinished work.
        overwrite: Whether to replace existing captions. NAME.bak then keeps what the file NAME was before its
            first change.
    """

    is_shared: ClassVar = True  # by all processes

    def __init__(self, work: Path, overwrite: bool) -> None:
        self.work, self.overwrite = work, overwrite

    def row_name(self, path: str) -> str:
        """Return an image's name from its path."""
        return os.path.abspath(path)

    def missing(self, names: pa.Array) -> pa.Array:
        """Return for each image whether its captions are to be written.

        Raises:
            UserError: They cannot be written here, or what exists cannot be read.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Keep a backup of a file that the work will replace, before it begins."""

    def write_batch(self, rows: Iterable[Row]) -> None:
        """Write the captions of a batch, if each image has a file."""

    def write_all(self, rows: Iterable[Row]) -> None:
        """Write all captions, if there is one file."""


class TableFile(Output):
    """A file with a row for each image: `.jsonl`, `.parquet`, or `.csv` with a row for each caption.

    A path inside the file's folder is written relative to it, any other path as an absolute path: the file
    can be used as a dataset from any working directory. The column of paths is `image`; in a file named
    `metadata`, which makes its folder an image folder, it is `file_name`.

    Args:
        path: The file. New rows are added to those that it has.
        overwrite: Whether to replace the file.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path = path.absolute()
        self.key = "file_name" if path.stem == "metadata" else "image"
        super().__init__(self.path.with_name(f".{path.name}.parts"), overwrite)

    def row_name(self, path: str) -> str:
        """Return an image's path, relative to the file's folder if it is inside it."""
        path, folder = os.path.abspath(path), os.path.join(self.path.parent, "")
        return Path(path.removeprefix(folder)).as_posix() if path.startswith(folder) else path

    def missing(self, names: pa.Array) -> pa.Array:
        """See `Output.missing`."""
        for name in to_names(names):
            if self.key == "file_name" and os.path.isabs(name):
                raise UserError(f"{self.path} describes the images of its folder, and {name!r} is not there")
            if self.path.suffix != ".jsonl" and name != name.encode(errors="replace").decode():
                raise UserError(f"{name!r} is not valid Unicode: rename the file, or write a .jsonl file")
        if self.overwrite:
            return pa.repeat(True, len(names))
        known = to_column(name for file in self.files() for name in self._read_names(file))
        return pc.invert(pc.is_in(names, value_set=known))

    def prepare(self) -> None:
        """See `Output.prepare`."""
        if self.overwrite and self.path.exists():
            _keep_backup(self.path)

    def write_all(self, rows: Iterable[Row]) -> None:
        """Add the rows to the file, or replace it, atomically."""
        old = self.path if self.path.exists() and not self.overwrite else None
        draft = draft_of(self.path)
        if self.path.suffix == ".parquet":
            _write_parquet(draft, rows, self.key, old)
        else:
            shutil.copyfile(old or os.devnull, draft)
            end_last_line(draft)
            (_append_jsonl if self.path.suffix == ".jsonl" else _append_csv)(draft, rows, self.key)
        put_in_place(self.path)

    def files(self) -> list[Path]:
        """Return the files whose rows are not written again."""
        return [self.path] if self.path.exists() else []

    def _read_names(self, file: Path) -> Iterator[str]:
        try:
            for name in _READERS[file.suffix](file, self.key):
                if not isinstance(name, str):
                    raise UserError(f"{file} has no {self.key!r} in a row: give another --output")
                yield name.removeprefix("./")
        except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read ({error}): give another --output") from error


def _read_jsonl(file: Path, key: str) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = parse_json(line, f"{file}, line {number}")
                yield row.get(key) if isinstance(row, dict) else None


def _read_csv(file: Path, key: str) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        _require_columns(file, rows.fieldnames or (), key, "caption")
        yield from (row[key] for row in rows)


def _read_parquet(file: Path, key: str) -> Iterator[Any]:
    with pq.ParquetFile(file) as table:
        lists = [field.name for field in table.schema_arrow if pa.types.is_list(field.type)]
        names = [name for name in table.schema_arrow.names if name in (*lists, key)]
        _require_columns(file, names, key, "captions")
        for batch in table.iter_batches(columns=[key]):
            yield from batch[key].to_pylist()


def _require_columns(file: Path, columns: Sequence[str], *required: str) -> None:
    if not {*required} <= {*columns}:
        names = " and ".join(required)
        raise UserError(f"{file} lacks the columns {names} that captions are added to: give another --output")


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _append_jsonl(draft: Path, rows: Iterable[Row], key: str) -> None:
    # JSON can escape the lone surrogates of a name that is not valid Unicode, as "\udc80".
    with draft.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for name, captions in rows:
            file.write(json.dumps({key: name, "captions": captions}, ensure_ascii=False) + "\n")


def _append_csv(draft: Path, rows: Iterable[Row], key: str) -> None:
    with draft.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    with draft.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header or [key, "caption"], lineterminator="\n")
        if not header:
            writer.writeheader()
        for name, captions in rows:
            writer.writerows({key: name, "caption": caption} for caption in captions)


def _write_parquet(draft: Path, rows: Iterable[Row], key: str, old: Path | None) -> None:
    schema = pa.schema({key: pa.string(), "captions": pa.list_(pa.string())})
    schema = schema if old is None else pq.read_schema(old)
    with pq.ParquetWriter(draft, schema) as writer:
        if old is not None:
            with pq.ParquetFile(old) as table:
                for batch in table.iter_batches(_CHUNK):
                    writer.write_batch(batch)
        remaining = iter(rows)
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            values = [{key: name, "captions": captions} for name, captions in chunk]
            writer.write_table(pa.Table.from_pylist(values, schema=schema))


class PartsFolder(TableFile):
    """A folder of files `part-00000-of-00004.parquet`, which are the rows of one process each.

    No process reads another one's work, so the processes need no common folder.

    Args:
        folder: The folder.
        rank: This process.
        overwrite: Whether to replace this process's file.

    Raises:
        UserError: The folder has files of another number of processes, and they are to be replaced or are
            not finished.
    """

    is_shared = False

    def __init__(self, folder: Path, rank: Rank, overwrite: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        count = f"-of-{rank.count:05d}.parquet"
        super().__init__(folder / f"part-{rank.index:05d}{count}", overwrite)
        for other in folder.glob("part-*.parquet" if overwrite else ".part-*.parts"):
            if count not in other.name:
                raise UserError(
                    f"{other} is of another number of processes than {rank.count}: start as many, or give "
                    "another --output"
                )

    def files(self) -> list[Path]:
        """See `TableFile.files`."""
        return sorted(self.path.parent.glob("part-*.parquet"))


class Sidecars(Output):
    """A file with the captions of each image: `dog.txt`, or the XMP sidecar `dog.jpg.xmp` with one caption.

    digiKam and darktable read and write `dog.jpg.xmp`; Immich reads it before `dog.xmp`.

    Args:
        suffix: ".txt" or ".xmp".
        folder: The folder in which unfinished work is kept.
        overwrite: As for `Output`. An XMP sidecar without a description is changed in any case.
    """

    def __init__(self, suffix: str, folder: Path, overwrite: bool) -> None:
        self.suffix = suffix
        super().__init__(folder.absolute() / f".captions{suffix}.parts", overwrite)

    def missing(self, names: pa.Array) -> pa.Array:
        """See `Output.missing`."""
        counts = pc.value_counts(to_column(str(self._path(name)) for name in to_names(names)))
        shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(shared):
            raise UserError(
                f"{len(shared):,} caption files would each belong to several images, such as "
                f"{os.fsdecode(shared[0].as_py())}: rename the images, or use --output"
            )
        return pa.array(np.fromiter(map(self._is_missing, to_names(names)), bool, len(names)))

    def write_batch(self, rows: Iterable[Row]) -> None:
        """Write the captions of each image, unless somebody has written them since the work began."""
        for name, captions in rows:
            if not self._is_missing(name):
                continue
            path, old = self._path(name), None
            if path.exists():
                _keep_backup(path)
                old = path.read_bytes()
            xmp = self.suffix == ".xmp"
            content = set_description(old or EMPTY_PACKET, captions[0]) if xmp else _lines(captions)
            draft_of(path).write_bytes(content)
            draft_of(path).replace(path)

    def _path(self, name: str) -> Path:
        return Path(f"{name}.xmp") if self.suffix == ".xmp" else Path(name).with_suffix(".txt")

    def _is_missing(self, name: str) -> bool:
        path = self._path(name)
        if self.suffix == ".txt":
            return self.overwrite or not (path.exists() or path.with_suffix(".caption").exists())
        try:
            return not path.exists() or not get_description(path.read_bytes()) or self.overwrite
        except UserError as error:
            raise UserError(f"{path} {error}: correct or remove it") from error


def end_last_line(path: Path) -> None:
    """Add a line break to a file whose last line has none; create the file if there is none."""
    with path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")


def _lines(captions: Sequence[str]) -> bytes:
    return "".join(f"{caption}\n" for caption in captions).encode()


def _keep_backup(path: Path) -> None:
    backup = path.with_name(f"{path.name}.bak")
    if not backup.exists():
        shutil.copy2(path, backup)
