"""The images in a column of a `datasets` table: files inside its rows, or the names of files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from .images import load_image
from .rows import parse_file_name

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image whose file lies inside a row of a table.

    Args:
        table: A `datasets.Dataset` of one column, of images that it does not decode. It stays on
            disk, and is pickled as the path of its file.
        position: Of the row.
        name: What messages call the image.
        num_bytes: Of its file.
    """

    table: Any
    position: int
    name: str
    num_bytes: int

    def read(self) -> bytes:
        """Return the image's file, undecoded."""
        (value,) = self.table[self.position].values()
        return value["bytes"]

    def load(self) -> Image.Image:
        """Decode the image; see `load_image`."""
        return load_image(self.read(), name=self.name)


class _Cell(NamedTuple):
    """What a row holds in place of an image: a file's name, a file of so many bytes, or both."""

    path: str | None
    size: int | None


def read_column(table: Any, column: str) -> list[Any]:
    """Read one column of a table, and nothing of the others."""
    return table.select_columns([column])[:][column]


def holds_images(feature: Any) -> bool:
    """Say whether a column's type tells that there are images in it."""
    from datasets import Image

    # Tables that other libraries wrote have the bytes and no type that says what they are.
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def read_images(
    table: Any, column: str, part: str, where: str, root: Path | None
) -> Iterator[tuple[str, Path | TableImage]]:
    """Yield the name and the source of each row's image; rows of the same image have one name.

    Args:
        table: A `datasets.Dataset`.
        column: Of images or of file names.
        part: What the table is called in names.
        where: What it is called in messages.
        root: The folder that file names are relative to, if there is one.

    Raises:
        ValueError: The column holds something else, or a row has no image.
    """
    if getattr(table.features[column], "dtype", None) in ("string", "large_string"):
        cells = [_Cell(path, None) for path in read_column(table, column)]
        images = table
    else:
        images = _undecoded(table, column, where)
        cells = list(_read_cells(images, column))
    sources = [_locate(images, column, *at, where, root) for at in enumerate(cells)]
    firsts = _find_firsts(cells, sources)
    for cell, source, first in zip(cells, sources, firsts, strict=True):
        inside = isinstance(source, TableImage)
        yield f"{part}[{first}]" if inside else PurePosixPath(str(cell.path)).as_posix(), source


def _undecoded(table: Any, column: str, where: str) -> Any:
    from datasets import Image

    try:
        return table.select_columns([column]).cast_column(column, Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # Arrow's errors are among them
        raise ValueError(
            f"{where}: column {column!r} is of type {table.features[column]}, and neither images nor "
            "file names: name another one with image_column"
        ) from error


def _read_cells(images: Any, column: str) -> Iterator[_Cell]:
    """Read of each image its path and its size, not its bytes."""
    import pyarrow.compute as pc

    for batch in images.with_format("arrow").iter(batch_size=1000):
        for chunk in batch.column(column).chunks:
            paths = pc.struct_field(chunk, "path").to_pylist()
            sizes = pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
            yield from map(_Cell, paths, sizes)


def _locate(
    images: Any, column: str, position: int, cell: _Cell, where: str, root: Path | None
) -> Path | TableImage:
    at = f"{where}[{position}]"
    if cell.size is not None:
        return TableImage(images, position, at, cell.size)
    name = parse_file_name(cell.path, at, column, absolute=True)
    if root is None:
        raise ValueError(
            f"{at}: {column!r} is a file's name, {name!r}: say with image_root where the files are"
        )
    return root / name


def _find_firsts(cells: Sequence[_Cell], sources: Sequence[Path | TableImage]) -> list[int]:
    """Find for each row the first one with the same image.

    Images are the same if their paths, where they have any, and their bytes are. Paths alone do not
    tell: `datasets` keeps but the last part of them.
    """
    counts = Counter(cells)
    firsts: dict[Any, int] = {}
    found = []
    for position, (cell, source) in enumerate(zip(cells, sources, strict=True)):
        content = b""
        if isinstance(source, TableImage) and counts[cell] > 1:  # else they cannot be the same
            content = hashlib.sha256(source.read()).digest()
        found.append(firsts.setdefault((cell, content), position))
    return found
