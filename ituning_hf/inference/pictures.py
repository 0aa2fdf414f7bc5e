"""Find the images that the arguments of a command select."""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.columns import CaptionedImages, restore_name
from ..data.images import IMAGE_SUFFIXES, iter_images
from ..data.loading import is_dataset, load_captioned_images
from ..data.shards import find_shards
from ..utils.errors import UserError
from .captioning import ImageSource
from .outputs import Output, to_column, to_names

_CHUNK = 10_000
_FILE = "a file"  # as the place of an image
_CAPTION_FILE = re.compile(r"\.(txt|caption|xmp|bak\d*)\Z", re.IGNORECASE)

_Part = tuple[pa.Array | CaptionedImages, str]


class Pictures(Sequence[ImageSource]):
    """Image files and images of datasets, without a Python object for each.

    An image file is its path. An image of a dataset that is not a file has its dataset in its name, such as
    `captions.parquet/train[0]`.

    Args:
        parts: Columns of paths (bytes), or images of a dataset and what precedes their names.
        order: The indices of the images in all parts; by default all of them.
    """

    def __init__(self, parts: Sequence[_Part], order: np.ndarray | None = None) -> None:
        self.parts = [part for part in parts if len(part[0])]
        self._ends = [*itertools.accumulate(len(images) for images, _ in self.parts)]
        self._order = np.arange(self._ends[-1] if self._ends else 0) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        number = bisect.bisect_right(self._ends, self._order[index])
        images, prefix = self.parts[number]
        image = images[int(self._order[index]) - self._ends[number]]  # from the end of the part
        if isinstance(image, pa.Scalar):
            return os.fsdecode(image.as_py())
        if isinstance(image.source, Path):
            return str(image.source)
        return replace(image, name=prefix + image.name)

    def select(self, indices: np.ndarray) -> Pictures:
        """Return the images at some indices, in their order."""
        return Pictures(self.parts, self._order[indices])

    def names(self, output: Output) -> pa.Array:
        """Return a column of the names of all images in all parts, in an output.

        An image that is not a file has the path of its dataset and its name there, as one path. Names from
        the Hub and remote addresses do not change.

        Raises:
            UserError: Different images have the same name, an image must be a file and is not, or a dataset
                that is the output, too, names images otherwise.
        """
        for images, prefix in self.parts:
            rows = _rows(images, prefix, output.name_of)
            output.check_source(prefix.rstrip("/"), (name for name, _ in rows))

        def column(index: int) -> pa.Array:
            rows = itertools.chain.from_iterable(_rows(*part, output.name_of) for part in self.parts)
            return to_column(row[index] for row in rows)

        names = column(0)
        if all(isinstance(images, pa.Array) for images, _ in self.parts):
            return names
        table = pa.table({"name": names, "place": column(1)})
        others, reason = table.filter(pc.not_equal(table["place"], _FILE))["name"], output.files_only
        if reason and len(others):
            raise UserError(f"{reason}, and {_first(others)} is not a file: use --output captions.jsonl")
        table = table.group_by("name").aggregate([("place", "count_distinct")])
        if len(shared := table.filter(pc.greater(table["place_count_distinct"], 1))["name"]):
            raise UserError(f"several images are named {_first(shared)}: give their datasets different names")
        return names


def _first(names: pa.ChunkedArray) -> str:
    return repr(os.fsdecode(names[0].as_py()))


def _rows(
    images: pa.Array | CaptionedImages, prefix: str, from_path: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each image, and its place, which differs for different images of this name."""
    if isinstance(images, pa.Array):
        yield from ((from_path(path), _FILE) for path in to_names(images))
        return
    is_path = os.path.lexists(prefix.rstrip("/") or ".")
    in_shards = "offset" in images.dataset.column_names
    for start in range(0, len(images), _CHUNK):
        rows = images[start : start + _CHUNK]
        offsets = rows.column("offset").to_pylist() if in_shards else itertools.repeat(None)
        columns = (rows.column(name).to_pylist() for name in ("name", "path"))
        for name, path, offset in zip(*columns, offsets, strict=False):
            path = path and from_path(restore_name(path))
            if path is not None and offset is None:
                yield path, _FILE
            else:
                name = prefix + restore_name(name)
                yield from_path(name) if is_path else name, f"{path}:{offset}"


def find_pictures(
    arguments: Sequence[str], image_root: str | None, image_column: str | None, left_out: Counter[str]
) -> Pictures:
    """Find the images of the arguments: files, folders, globs, "-" for standard input, datasets.

    Args:
        arguments: The arguments; a folder stands for all images in it and below.
        image_root: As for `load_captioned_images`.
        image_column: As for `load_captioned_images`.
        left_out: Receives the number of other files in folders and globs, by suffix.

    Raises:
        UserError: An argument selects no images.
    """
    options: dict[str, Any] = {"image_root": image_root, "image_column": image_column}
    options |= {"require_captions": None, "require_images": False}

    def load(source: str) -> _Part:
        images, shards = load_captioned_images(source, "all", **options), find_shards(source)
        if not shards:
            return images, f"{source.rstrip('/')}/"
        name, address = next(iter(shards.items()))  # "shards/01/000" is "000" in "shards/01.tar"
        return images, address.removesuffix(".tar").removesuffix(name)

    parts: list[_Part] = []
    # A shell expands "photos/*" to all files; caption files among them are no mistake.
    others = [path for path in arguments if not (_CAPTION_FILE.search(path) and os.path.isfile(path))]
    for argument in others or arguments:
        if argument == "-":
            # Bytes, as file names are; a line is a path and nothing else.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            found: list[_Part] = [(to_column(line for line in lines if line), "")]
        elif is_dataset(argument):
            found = [load(argument)]
        elif os.path.isdir(argument):
            found = [(to_column(iter_images(argument, left_out)), "")]
        elif os.path.lexists(argument):
            found = [(to_column([argument]), "")]
        else:
            matches = [path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path)]
            paths = sorted(path for path in matches if _suffix(path) in IMAGE_SUFFIXES or is_dataset(path))
            left_out.update(map(_suffix, {*matches} - {*paths}))
            found = [(to_column(itertools.filterfalse(is_dataset, paths)), "")]
            found += map(load, filter(is_dataset, paths))
        if not any(len(images) for images, _ in found):
            is_missing = not (argument == "-" or glob.has_magic(argument) or os.path.lexists(argument))
            problem = "does not exist" if is_missing else "gives no images"
            raise UserError(
                f"{argument!r} {problem}: name a file, a folder of images, a glob with matches, a dataset, "
                "or - with paths on standard input"
            )
        parts += found
    return Pictures(parts)


def _suffix(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix[1:].isalnum() else ""  # of "Mr. Smith"
