"""Where the captions of a collection go: a file of rows, or files beside the images.

A column of names has bytes, as file names are: they need not be valid Unicode. An image whose captions are
empty, because somebody has removed wrong ones, counts as not captioned.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..data.cells import parse_captions
from ..data.folders import CAPTION_SUFFIXES, find_metadata
from ..data.records import parse_file_name
from ..data.rows import describe_row, find_delimiter, read_rows
from ..data.selection import random_number
from ..utils.errors import UserError
from ..utils.files import draft_of, put_in_place, sync
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


def to_names(column: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    """Yield the names in a column."""
    for start in range(0, len(column), _CHUNK):
        yield from map(os.fsdecode, column.slice(start, _CHUNK).to_pylist())


class Output:
    """A place for captions. Captions that exist there stay, unless `overwrite`.

    Args:
        title: Its name in messages.
        work: The folder for unfinished work.
        overwrite: Whether to replace existing captions of the selected images. Before any file NAME loses
            content, it is copied to NAME.bak (or NAME.bak2 and so on).
        files_only: Why images that are not files cannot have captions here, or None.
    """

    def __init__(self, title: str, work: Path, overwrite: bool, files_only: str | None) -> None:
        self.title, self.work, self.overwrite, self.files_only = title, work, overwrite, files_only

    def name_of(self, path: str) -> str:
        """Return an image's name from its path."""
        return os.path.abspath(path)

    def share(self, names: pa.Array, rank: Rank) -> tuple[pa.Array, Rank]:
        """Return the images that a process shares with others, and its rank among these."""
        return names, rank

    def check_source(self, source: str, names: Iterable[str]) -> None:
        """Raise a UserError if a dataset is this output, and its images have other names here than there."""

    def missing(self, names: pa.Array) -> pa.Array:
        """Return for each image whether its captions are to be written.

        Raises:
            UserError: They cannot be written here, or what exists cannot be read.
        """
        raise NotImplementedError

    def write_batch(self, rows: Iterable[Row]) -> None:
        """Write the captions of a batch, if each image has a file."""

    def write_all(self, names: pa.Array, rows: Iterable[Row]) -> bool:
        """Write the captions of all images with these names, if there is one file.

        Returns:
            False if somebody has changed the file since `missing` read it. Then nothing is written.
        """
        return True


class TableFile(Output):
    """A file with a row for each image: `.jsonl`, `.parquet`, or `.csv` with a row for each caption.

    A path inside the file's folder is written relative to it, any other path as an absolute path: the file
    can be used as a dataset from any working directory. The column of paths is `image`; in a file named
    `metadata`, which makes its folder an image folder, it is `file_name`.

    Args:
        path: The file. New rows are added to those that it has, in its own columns.
        overwrite: As for `Output`.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, is_metadata = path.absolute(), path.stem == "metadata"
        self._folder = os.path.join(os.path.abspath(path.parent), "")
        self.key = "file_name" if is_metadata else "image"
        self.captions = "caption" if path.suffix == ".csv" else "captions"
        self._version: tuple[int, ...] | None = None
        files_only = f"{path} describes image files" if is_metadata else None
        super().__init__(str(path), self.path.with_name(f".{path.name}.parts"), overwrite, files_only)

    def name_of(self, path: str) -> str:
        """Return an image's path, relative to the file's folder if it is inside it."""
        return os.path.abspath(path).removeprefix(self._folder).replace(os.sep, "/")

    def check_source(self, source: str, names: Iterable[str]) -> None:
        """See `Output.check_source`."""
        if os.path.exists(source) and self.path.exists() and os.path.samefile(source, self.path):
            column, known = to_column(names), to_column(name for _, name, _ in self._read(self.path))
            for name in to_names(column.filter(pc.invert(pc.is_in(column, value_set=known)))):
                raise UserError(
                    f"{self.path} has an image whose path from its folder is {name!r} and is written there "
                    "otherwise: correct it, or give another --output"
                )

    def missing(self, names: pa.Array) -> pa.Array:
        """See `Output.missing`."""
        for name in to_names(names) if self.path.suffix != ".jsonl" else ():
            if name != name.encode(errors="replace").decode().strip() or {*name} & {*"\r\n"}:
                problem = "is not valid Unicode, begins or ends with a space, or has a line break"
                raise UserError(f"{name!r} {problem}: rename the file, or write a .jsonl file")
        if self.files_only:
            self._check_metadata(names)
        self._version = _version(self.path)
        if self.path.suffix == ".parquet" and self.path.exists():
            try:
                new = self._to_table([("", [""])], pq.read_schema(self.path))
                pq.write_table(new, pa.BufferOutputStream())  # fails if a column must not be null
            except pa.ArrowException as error:
                raise UserError(
                    f"captions cannot be added to {self.path} ({error}): give another --output"
                ) from error
        known = to_column(
            name for file in self.files() for _, name, has_captions in self._read(file) if has_captions
        )
        return pc.or_(pc.invert(pc.is_in(names, value_set=known)), self.overwrite)

    def _check_metadata(self, names: pa.Array) -> None:
        """Refuse images that `metadata` cannot describe, and captions that it would hide."""
        hidden = (file for file in find_metadata(self.path.parent) if file != self.path)
        if other := next(hidden, None):
            raise UserError(f"{self.path} would hide {other}: give --output {other}, or remove that file")
        for name in to_names(names):
            try:
                parse_file_name(name, self.key)
            except UserError:
                raise UserError(
                    f"{self.path} describes the images of its folder, and {name!r} is not there on every "
                    "system: move or rename the image, or give another --output"
                ) from None
            if found := _caption_files(self.path.parent / name):
                raise UserError(f"{self.path} would hide {found[0]}: use --format txt, or remove that file")

    def write_all(self, names: pa.Array, rows: Iterable[Row]) -> bool:
        """Add the rows, which replace those of the same images, atomically; see `Output.write_all`."""
        exists, target = self.path.exists(), self.path.resolve()
        if exists and not len(names):
            return True
        new = {*to_names(names)}
        found = ((number, name not in new) for number, name, _ in self._read(self.path)) if exists else ()
        groups = itertools.groupby(found, key=itemgetter(1))
        kept = {next(group)[0]: is_kept for is_kept, group in groups}  # only the rows where it changes
        draft = draft_of(target)
        draft.unlink(missing_ok=True)  # one of a killed process may be read-only, as the file
        (self._write_parquet if self.path.suffix == ".parquet" else self._write_text)(draft, kept, rows)
        if exists:
            shutil.copymode(target, draft)
        sync(draft)  # this can take long, so the file is looked at afterwards
        if _version(self.path) != self._version:
            return False
        if not all(kept.values()):
            _keep_backup(self.path)
        put_in_place(target)
        return True

    def files(self) -> list[Path]:
        """Return the files whose rows are not written again."""
        return [self.path] if self.path.exists() else []

    def _read(self, file: Path) -> Iterator[tuple[int, str, bool]]:
        """Yield the number of each row, its image, and whether it has captions."""

        def select(columns: Sequence[str]) -> list[str]:
            if not {self.key, self.captions} <= {*columns}:
                needed = f"{self.key!r} and {self.captions!r}"
                raise UserError(
                    f"there are no columns {needed}, to which captions are added; give another --output"
                )
            return [self.key, self.captions]

        for number, row in read_rows(file, select=select):
            try:
                if file.suffix == ".jsonl":
                    select([*row])
                name = row[self.key]
                if not isinstance(name, str):
                    raise UserError(f"{self.key!r} is {reprlib.repr(name)}, expected a file name")
                name = name if "://" in name else self.name_of(os.path.join(self._folder, name))
                has_captions = parse_captions(row[self.captions], self.captions) != ()
            except UserError as error:
                raise UserError(f"{describe_row(file, number)}: {error}") from error
            yield number, name, has_captions

    def _write_text(self, draft: Path, kept: Mapping[int, bool], rows: Iterable[Row]) -> None:
        lines = self._kept_lines(kept)
        # JSON can escape the lone surrogates of a name that is not valid Unicode, as "\udc80".
        options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with draft.open("w", **options) as file:
            if self.path.suffix == ".jsonl":
                file.writelines(lines)
                for name, captions in rows:
                    file.write(json.dumps({self.key: name, "captions": captions}, ensure_ascii=False) + "\n")
                return
            header = next(filter(str.strip, lines), f"{self.key},{self.captions}\n")
            file.writelines(itertools.chain([header], lines))
            delimiter, ending = find_delimiter(header), header[len(header.rstrip("\r\n")) :]
            (columns,) = csv.reader([header.strip("\ufeff\r\n")], delimiter=delimiter)
            columns = [column.strip() for column in columns]
            writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator=ending)
            for name, captions in rows:
                writer.writerows({self.key: name, self.captions: caption} for caption in captions)

    def _kept_lines(self, kept: Mapping[int, bool]) -> Iterator[str]:
        newline, endings = ("", ("\n", "\r")) if self.path.suffix == ".csv" else ("\n", ("\n",))
        if self.path.exists():
            with self.path.open(encoding="utf-8", newline=newline) as lines:
                for line in itertools.compress(lines, _follow(kept, 1)):
                    yield line if line.endswith(endings) else f"{line}\n"

    def _write_parquet(self, draft: Path, kept: Mapping[int, bool], rows: Iterable[Row]) -> None:
        schema = pa.schema({self.key: pa.string(), self.captions: pa.list_(pa.string())})
        old = self.path if self.path.exists() else None
        with pq.ParquetWriter(draft, pq.read_schema(old) if old else schema) as writer:
            if old:
                flags = _follow(kept, 0)
                with pq.ParquetFile(old) as table:
                    for batch in table.iter_batches(_CHUNK):
                        writer.write_batch(batch.filter(pa.array(itertools.islice(flags, len(batch)))))
            remaining = iter(rows)
            while chunk := list(itertools.islice(remaining, _CHUNK)):
                writer.write_table(self._to_table(chunk, writer.schema))

    def _to_table(self, rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
        values = [{self.key: name, self.captions: captions} for name, captions in rows]
        return pa.Table.from_pylist(values, schema=schema)


class PartsFolder(TableFile):
    """A folder of files `part-00000-of-00004.parquet`, which have the rows of one process each.

    The processes need no common folder: an image belongs to the process that its name selects.

    Args:
        folder: The folder.
        rank: This process.
        overwrite: As for `Output`.

    Raises:
        UserError: The folder has unfinished work of another number of processes, or rows that are to be
            replaced are theirs.
    """

    def __init__(self, folder: Path, rank: Rank, overwrite: bool) -> None:
        count = f"-of-{rank.count:05d}.parquet"
        super().__init__(folder / f"part-{rank.index:05d}{count}", overwrite)
        for other in folder.glob("part-*.parquet" if overwrite else ".part-*.parts"):
            if count not in other.name:
                raise UserError(
                    f"{other} is of another number of processes than {rank.count}: start as many, or give "
                    "another --output"
                )

    def share(self, names: pa.Array, rank: Rank) -> tuple[pa.Array, Rank]:
        """See `Output.share`; each process has its own images."""
        owners = (int(random_number(0, name) * rank.count) for name in to_names(names))
        return names.filter(pa.array(owner == rank.index for owner in owners)), Rank(0, 1, 0)

    def files(self) -> list[Path]:
        """See `TableFile.files`."""
        return sorted(self.path.parent.glob("part-*.parquet"))


class Sidecars(Output):
    """A file with the captions of each image: `dog.txt`, or the XMP sidecar `dog.jpg.xmp` with one caption.

    digiKam and darktable read and write `dog.jpg.xmp`. Immich prefers it to `dog.xmp`, Lightroom's name.

    Args:
        suffix: ".txt" or ".xmp".
        folder: The folder in which unfinished work is kept.
        overwrite: As for `Output`. An XMP sidecar without a description is changed in any case.
    """

    def __init__(self, suffix: str, folder: Path, overwrite: bool) -> None:
        self.suffix = suffix
        work = folder.absolute() / f".captions{suffix}.parts"
        super().__init__(f"{suffix} files", work, overwrite, f"{suffix} files are written beside image files")

    def missing(self, names: pa.Array) -> pa.Array:
        """See `Output.missing`."""
        counts = pc.value_counts(to_column(str(self._find(name)) for name in to_names(names)))
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
            if not (any(captions) and self._is_missing(name)):
                continue
            path, source = self._path(name), self._find(name)
            old = path.read_bytes() if path.exists() else b""
            if self.suffix == ".xmp":
                base = source.read_bytes() if source.exists() else EMPTY_PACKET
                content = set_description(base, captions[0])
            else:
                content = "".join(f"{caption}\n" for caption in captions).encode()
            if old not in (b"", content):
                _keep_backup(path)
            draft_of(path).write_bytes(content)
            sync(draft_of(path))  # a power cut must not leave an empty file
            draft_of(path).replace(path)

    def _path(self, name: str) -> Path:
        return Path(f"{name}.xmp") if self.suffix == ".xmp" else Path(name).with_suffix(".txt")

    def _find(self, name: str) -> Path:
        """Return the file that has an image's captions: its own one, or else `dog.xmp`, if it exists."""
        own, other = self._path(name), Path(name).with_suffix(self.suffix)
        return other if other.exists() and not own.exists() else own

    def _is_missing(self, name: str) -> bool:
        path = self._find(name)
        if self.suffix == ".txt":
            return self.overwrite or not _caption_files(path)
        try:
            return not path.exists() or not get_description(path.read_bytes()) or self.overwrite
        except UserError as error:
            raise UserError(f"{path} {error}: correct or remove it") from error


def _caption_files(path: Path) -> list[Path]:
    """Return the files with captions that an image has."""
    files = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return [
        file for file in files if file.is_file() and file.read_bytes().strip(codecs.BOM_UTF8 + b" \t\r\n")
    ]


def _follow(kept: Mapping[int, bool], first: int) -> Iterator[bool]:
    """Yield whether each line or Parquet row is kept, from a number on; a row can have several lines."""
    is_kept = True
    for number in itertools.count(first):
        is_kept = kept.get(number, is_kept)
        yield is_kept


def _version(path: Path) -> tuple[int, ...] | None:
    """Return what differs after a file was changed; None if it does not exist."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _keep_backup(path: Path) -> None:
    names = (f"{path.name}.bak{number or ''}" for number in itertools.chain([0], itertools.count(2)))
    backup = next(file for name in names if not (file := path.with_name(name)).exists())
    shutil.copy2(path, backup)
    sync(backup)
