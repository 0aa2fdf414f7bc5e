"""A dataset as memory-mapped Arrow columns, which data-loader workers share.

No Python object exists for an image until it is accessed. A list of a million records would take 900 MB, and
a forked worker would copy it, because reading a Python object changes its reference count.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import UserError
from .images import UnreadableImageError, load_image, open_file

if TYPE_CHECKING:
    from PIL import Image

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as in `datasets.Image`
_ROWS = pa.schema(
    {
        "image": _IMAGE,
        "name": pa.string(),
        "captions": pa.list_(pa.string()),
        "image_id": pa.string(),
        "number": pa.int64(),  # the id, if it is an integer of 64 bits
        "domain": pa.string(),
        "split": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
    }
)
# A file name that is not UTF-8 has lone surrogates in Python, which Arrow cannot store: there, characters for
# private use replace them.
_STORED = {code: code + 0x100000 for code in range(0xDC80, 0xDD00)}
_ORIGINAL = {stored: code for code, stored in _STORED.items()}
_BATCH_ROWS = 2000
_BATCH_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class FilePart:
    """An image inside a file, such as a tar shard."""

    path: Path
    offset: int  # in bytes from the start of the file
    length: int  # in bytes


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and its captions. Pixels are read only by `load`.

    Args:
        name: A unique name in the dataset: the file's path relative to the image root, or the number of the
            scene or row.
        captions: The captions, cleaned by `clean_caption`; none is empty.
        source: The image file, its content, or the part of a file that has its content. `CaptionedImages`
            give the path of a file as a `Path`.
        image_id: The image's id in the dataset, used in result files, or None.
        domain: "in-domain", "near-domain" or "out-domain" for NoCaps. None for other datasets.
        split: The split that the dataset specifies, or None.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | str | bytes | FilePart
    image_id: int | str | None = None
    domain: str | None = None
    split: str | None = field(default=None, compare=False)

    def load(self) -> Image.Image:
        """Decode the image as upright RGB.

        Raises:
            UnreadableImageError: The image cannot be decoded; see `load_image`.
        """
        if isinstance(self.source, Path | str):
            return load_image(self.source)
        try:
            content = self.read()
        except OSError as error:
            raise UnreadableImageError(f"cannot read {self.name}: {error}") from error
        return load_image(content, name=self.name)

    def read(self) -> bytes:
        """Return the content of the image file; raise OSError if it cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        part = self.source if isinstance(self.source, FilePart) else FilePart(Path(self.source), 0, -1)
        with open_file(part.path) as file:
            file.seek(part.offset)
            return file.read(part.length)

    @property
    def num_bytes(self) -> int:
        """The length of the image file, without reading it; raise OSError if it does not exist."""
        if isinstance(self.source, Path | str):
            return os.stat(self.source).st_size
        return len(self.source) if isinstance(self.source, bytes) else self.source.length


class CaptionedImages(Sequence[CaptionedImage]):
    """The images of a dataset, as Arrow columns. `images[i]` makes a `CaptionedImage` of row i.

    Pickling stores the paths of the memory-mapped files, not their content.

    Args:
        dataset: A dataset with the columns `name` (string), `image` (a struct of `bytes` and `path`, of which
            one is null), `captions` (a list of strings), `image_id` (int64 or string) and `domain` (string).
            Images that are parts of files also have `offset` and `length` (int64). Images in a table of the
            library `datasets` have their bytes in the column `content` of that table, instead of `image`.
    """

    def __init__(self, dataset: datasets.Dataset, owners: Sequence[datasets.Dataset] = ()) -> None:
        self.dataset = dataset
        self._owners = owners or (dataset,)  # their files are removed with the last reference

    def __reduce__(self) -> Any:
        return CaptionedImages, (self.dataset,)

    @classmethod
    def from_images(cls, images: Iterable[CaptionedImage]) -> CaptionedImages:
        """Write images to a temporary memory-mapped file; only one batch of rows is in memory.

        The file is in the folder for temporary files (the environment variable TMPDIR). This process removes
        it when it exits, or when nothing refers to the images. Ids become strings unless all are 64-bit
        integers.

        Raises:
            UserError: A name is not valid Unicode, or there is no space for the file.
        """
        rows = write_rows(images)
        return cls(finish_rows(rows, np.arange(len(rows))))

    @classmethod
    def concatenate(cls, parts: Sequence[CaptionedImages]) -> CaptionedImages:
        """Return the images of several datasets in turn; their ids must have one type."""
        owners = [owner for part in parts for owner in part._owners]
        return cls(datasets.concatenate_datasets([part.dataset for part in parts]), owners)

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...

    @overload
    def __getitem__(self, index: slice) -> CaptionedImages: ...

    def __getitem__(self, index: int | slice) -> CaptionedImage | CaptionedImages:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return _to_image(self.dataset[index])

    def __iter__(self) -> Iterator[CaptionedImage]:
        for batch in self.dataset.with_format("arrow").iter(batch_size=256):
            yield from map(_to_image, batch.to_pylist())

    def select(self, indices: Iterable[int]) -> CaptionedImages:
        """Return the images at some indices, in their order; nothing is copied."""
        return CaptionedImages(self.dataset.select(indices), self._owners)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column, or "path" or "num_captions", without Python objects."""
        column = self._all_rows(name)
        return pa.chunked_array([*self._chunks(column)], column.type)

    def _all_rows(self, name: str) -> pa.ChunkedArray:
        table: pa.Table = self.dataset.data.table
        match name:
            case "path":
                return pc.struct_field(table["image"], "path")
            case "num_captions":
                return pc.list_value_length(table["captions"])
        return table[name]

    def _chunks(self, column: pa.ChunkedArray) -> Iterator[pa.Array]:
        # `datasets` has no public access to many rows of one column that avoids Python objects.
        rows = self.dataset._indices
        return iter(column.chunks) if rows is None else take(column, rows.column(0).to_numpy())

    def fingerprint(self) -> str:
        """Return a digest of the names and captions, in their order; images are not read."""
        counts = hashlib.sha256()
        for chunk in self.column("num_captions").chunks:
            counts.update(chunk.to_numpy().tobytes())
        names, captions = (self._chunks(self._all_rows(name)) for name in ("name", "captions"))
        parts = _digest(names) + counts.digest() + _digest(map(pc.list_flatten, captions))
        return hashlib.sha256(parts).hexdigest()[:16]


def _digest(chunks: Iterable[pa.Array]) -> bytes:
    """Return a hash of strings that does not depend on how they are divided into chunks."""
    lengths, content = hashlib.sha256(), hashlib.sha256()
    for chunk in chunks:
        lengths.update(pc.binary_length(chunk).to_numpy().tobytes())
        content.update("".join(chunk.to_pylist()).encode())
    return lengths.digest() + content.digest()


def _to_image(row: dict[str, Any]) -> CaptionedImage:
    source = (row.get("content") or row["image"])["bytes"]
    if source is None:
        source = Path(restore_name(row["image"]["path"]))
        if row.get("offset") is not None:
            source = FilePart(source, row["offset"], row["length"])
    return CaptionedImage(
        restore_name(row["name"]), tuple(row["captions"]), source, row["image_id"], row["domain"]
    )


def write_rows(images: Iterable[CaptionedImage]) -> datasets.Dataset:
    """Write images to a temporary file, with their splits, one batch after the other."""
    return write_table(_ROWS, _row_batches(images))


def finish_rows(
    rows: datasets.Dataset, kept: np.ndarray, merged: tuple[np.ndarray, np.ndarray] | None = None
) -> datasets.Dataset:
    """Write some of the rows to a new file, with one column of ids and without unused columns.

    Args:
        rows: The result of `write_rows`.
        kept: The indices of the rows, ascending.
        merged: The rows that have the captions of each of them, one after the other, and the number of these
            rows before each and in all; by default each row has its own captions.
    """
    table: pa.Table = rows.data.table
    numeric = table["number"].null_count == table["image_id"].null_count
    names = ["name", "image", "captions", "image_id", "domain"]
    if table["offset"].null_count < len(table):
        names += ["offset", "length"]
    types = {"image_id": pa.int64() if numeric else pa.string()}
    schema = pa.schema([(name, types.get(name) or _ROWS.field(name).type) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        start = written = 0
        for batch in table.to_batches():
            stop = start + len(batch)
            batch = batch.take(pa.array(kept[slice(*kept.searchsorted([start, stop]))] - start))
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if numeric:
                columns["image_id"] = columns["number"]
            if merged is not None:
                ends = merged[1][written : written + len(batch) + 1]
                columns["captions"] = _merge(table["captions"], merged[0][ends[0] : ends[-1]], ends - ends[0])
            start, written = stop, written + len(batch)
            yield pa.record_batch([columns[name] for name in names], schema=schema)

    return write_table(schema, batches())


def _merge(captions: pa.ChunkedArray, rows: np.ndarray, ends: np.ndarray) -> pa.Array:
    """Return lists of the captions of the rows between two ends."""
    lists = pa.chunked_array([*take(captions, rows)], captions.type).combine_chunks()
    offsets = lists.offsets.to_numpy()
    return pa.ListArray.from_arrays(pa.array(offsets[ends] - offsets[0]), lists.flatten())


def take(column: pa.ChunkedArray, indices: np.ndarray) -> Iterator[pa.Array]:
    """Yield values at some indices, 10,000 at a time; Arrow would first copy the entire column."""
    for start in range(0, len(indices), 10_000):
        part = indices[start : start + 10_000]
        first = part.min()
        yield from column.slice(first, part.max() + 1 - first).take(pa.array(part - first)).chunks


def _row_batches(images: Iterable[CaptionedImage]) -> Iterator[pa.RecordBatch]:
    remaining = iter(images)
    try:
        while rows := [*map(_to_row, _take_batch(remaining))]:
            contents, paths, *others = zip(*rows, strict=True)
            sources = [pa.array(contents, pa.binary()), pa.array(paths, pa.string())]
            columns = [pa.StructArray.from_arrays(sources, fields=[*_IMAGE]), *others]
            yield pa.record_batch([*map(pa.array, columns, _ROWS.types)], schema=_ROWS)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{error.object!r} is not valid Unicode: rename the file or correct the text, in UTF-8"
        ) from error


def _take_batch(images: Iterator[CaptionedImage]) -> Iterator[CaptionedImage]:
    size = 0
    for image in itertools.islice(images, _BATCH_ROWS):
        yield image
        size += len(image.source) if isinstance(image.source, bytes) else 0
        if size > _BATCH_BYTES:
            break


def _to_row(image: CaptionedImage) -> tuple[Any, ...]:
    """Return the content and the path of an image, and its other columns."""
    content = image.source if isinstance(image.source, bytes) else None
    part = image.source if isinstance(image.source, FilePart) else None
    path = None if content is not None else store_name(str(part.path if part else image.source))
    is_number = isinstance(image.image_id, int) and -(2**63) <= image.image_id < 2**63
    ids = None if image.image_id is None else str(image.image_id), image.image_id if is_number else None
    place = (part.offset, part.length) if part else (None, None)
    name = store_name(image.name)
    return content, path, name, image.captions, *ids, image.domain, image.split, *place


def store_name(name: str) -> str:
    """Return a name or path as the columns have it: file names that are not UTF-8 differ there."""
    return name if name.isascii() else name.translate(_STORED)


def restore_name(name: str) -> str:
    """Return a name or path from a column as the file system has it."""
    return name if name.isascii() else name.translate(_ORIGINAL)


def write_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> datasets.Dataset:
    """Write record batches to a temporary file that is removed with the returned dataset, which maps it.

    Raises:
        UserError: There is no space for the file.
    """
    descriptor, path = tempfile.mkstemp(prefix="ituning-", suffix=".arrow")
    try:
        with open(descriptor, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        dataset = datasets.Dataset.from_file(path)
    except BaseException as error:  # also of the generator of batches, which reads the dataset
        os.unlink(path)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space for the dataset's temporary file in {os.path.dirname(path)}: free some, or set "
                "TMPDIR to another folder"
            ) from error
        raise
    weakref.finalize(dataset, _remove, path, os.getpid())
    return dataset


def _remove(path: str, owner: int) -> None:
    """Remove a temporary file, but not in a forked process: it belongs to the parent."""
    if os.getpid() == owner:
        with suppress(OSError):  # it is already removed, or (on Windows) still mapped
            os.unlink(path)


def first_rows(chunks: Iterable[pa.Array]) -> np.ndarray:
    """Return for each row of a column the first row with an equal value; null is a value."""
    # By hashes of 64 bits: Arrow's dictionary of a million names would take 100 MB.
    hashes = [np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)) for chunk in chunks]
    column = np.concatenate([np.zeros(0, np.int64), *hashes])
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return first[inverse]
