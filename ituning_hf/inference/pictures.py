"""Find the images that the arguments of a command select."""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.columns import CaptionedImages, restore_name
from ..data.images import iter_images
from ..data.loading import is_dataset, load_captioned_images
from ..utils.errors import UserError
from .captioning import ImageSource
from .outputs import to_column, to_names

_CHUNK = 10_000


class Pictures(Sequence[ImageSource]):
    """Image files and images of datasets, without a Python object for each.

    Args:
        parts: Columns of paths (bytes), and images of datasets.
        order: The indices of the images in all parts; by default all of them.
    """

    def __init__(self, parts: Sequence[pa.Array | CaptionedImages], order: np.ndarray | None = None) -> None:
        self.parts = [part for part in parts if len(part)]
        self._ends = [*itertools.accumulate(map(len, self.parts))]
        self._order = np.arange(sum(map(len, parts))) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        number = bisect.bisect_right(self._ends, self._order[index])
        image = self.parts[number][int(self._order[index]) - self._ends[number]]  # from the end of the part
        return os.fsdecode(image.as_py()) if isinstance(image, pa.Scalar) else image

    def select(self, indices: np.ndarray) -> Pictures:
        """Return the images at some indices, in their order."""
        return Pictures(self.parts, self._order[indices])

    def names(self, from_path: Callable[[str], str]) -> pa.Array:
        """Return a column of names of all images.

        Args:
            from_path: Returns the name of an image from its path. An image that is not a file has its name in
                its dataset.
        """
        return to_column(itertools.chain.from_iterable(_names(part, from_path) for part in self.parts))


def _names(part: pa.Array | CaptionedImages, from_path: Callable[[str], str]) -> Iterator[str]:
    if isinstance(part, pa.Array):
        yield from map(from_path, to_names(part))
        return
    in_shards = "offset" in part.dataset.column_names
    for start in range(0, len(part), _CHUNK):
        rows = part[start : start + _CHUNK]
        paths = rows.column("path").to_pylist()
        for name, path in zip(rows.column("name").to_pylist(), paths, strict=True):
            is_file = path is not None and not in_shards
            yield from_path(restore_name(path)) if is_file else restore_name(name)


def find_pictures(
    arguments: Sequence[str], image_root: str | None, image_column: str | None, left_out: Counter[str]
) -> Pictures:
    """Find the images of the arguments: files, folders, globs, "-" for standard input, datasets.

    Args:
        arguments: The arguments; a folder stands for all images in it and below.
        image_root: As for `load_captioned_images`.
        image_column: As for `load_captioned_images`.
        left_out: Receives the number of other files in folders, by suffix.

    Raises:
        UserError: An argument selects no images.
    """

    def load(source: str) -> CaptionedImages:
        return load_captioned_images(
            source,
            "all",
            image_root=image_root,
            image_column=image_column,
            require_captions=None,
            require_images=False,
        )

    parts: list[pa.Array | CaptionedImages] = []
    for argument in arguments:
        matches = [argument]
        if argument == "-":
            # Bytes, as file names are; a line is a path and nothing else.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            found: list[pa.Array | CaptionedImages] = [to_column(line for line in lines if line)]
        elif is_dataset(argument):
            found = [load(argument)]
        elif os.path.isdir(argument):
            found = [to_column(iter_images(argument, left_out))]
        else:
            if not os.path.lexists(argument):
                paths = glob.iglob(argument, recursive=True)
                matches = sorted(path for path in paths if not os.path.isdir(path))
            found = [to_column(path for path in matches if not is_dataset(path))]
            found += map(load, filter(is_dataset, matches))
        if not any(map(len, found)):
            raise UserError(
                f"{argument!r} gives no images: name a file, a folder of images, a glob with matches, a "
                "dataset, or - with paths on standard input"
            )
        parts += found
    return Pictures(parts)
