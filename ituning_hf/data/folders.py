"""Folders of images: with metadata, or with a caption file beside each image."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import read_utf8
from .columns import CaptionedImage
from .images import iter_images
from .records import SPLIT_NAMES, clean_captions, first_names
from .tables import TableSettings, read_table

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_SUFFIXES = (".txt", ".caption")


def find_metadata(root: Path) -> list[Path]:
    """Return the metadata files in a folder and in its split folders."""
    paths = (root / split / name for split in ("", *SPLIT_NAMES) for name in METADATA_NAMES)
    return [path for path in paths if path.is_file()]


def read_image_folder(root: Path, settings: TableSettings) -> Iterator[CaptionedImage]:
    """Read the entries of a folder with `metadata.jsonl`, `.csv` or `.parquet`, in their order.

    Each row has the name of an image file, relative to the metadata, and a caption or a list of captions. The
    splits are the subfolders `train`, `val` and `test` (or another name in `SPLIT_NAMES`), each with its own
    metadata, or an optional column `split`.

    Raises:
        UserError: A row is malformed (the message has its number), or a split has several metadata files.
    """
    paths = find_metadata(root)
    folders = [path.parent.relative_to(root).as_posix() for path in paths]
    if ("." in folders and len(folders) > 1) or len({SPLIT_NAMES.get(name) for name in folders}) < len(paths):
        found = ", ".join(path.relative_to(root).as_posix() for path in paths)
        raise UserError(f"{root} has {found}: keep one per split, or one for all splits")
    for path, name in zip(paths, folders, strict=True):
        bases = [path.parent]
        if settings.image_root is not None:
            bases = [settings.image_root / name, settings.image_root]
        yield from read_table(
            path,
            settings,
            bases,
            prefix="" if name == "." else f"{name}/",
            split=SPLIT_NAMES.get(name),
            absolute=False,
        )


def read_captioned_files(root: Path, image_root: Path | None) -> Iterator[CaptionedImage]:
    """Read a folder with a caption file beside each image: `dog.jpg` and `dog.txt` or `dog.caption`.

    Each line of a caption file is a caption. Subfolders are included, hidden ones are not. The splits are the
    subfolders `train`, `val` and `test` (or another name in `SPLIT_NAMES`), if there are any. Images without
    a caption file are counted in a warning.

    Args:
        root: The folder of the caption files.
        image_root: The folder of the images, with the same subfolders; by default `root`.

    Raises:
        UserError: A caption file is not UTF-8.
        FileNotFoundError: There is no caption file.
    """
    found = num_left_out = 0
    left_out: list[str] = []  # the first few
    images = os.fspath(image_root or root)
    for path in iter_images(images):
        name = os.path.relpath(path, images).replace(os.sep, "/")
        texts = _read_captions(os.path.join(root, os.path.splitext(name)[0]))
        if texts is None:
            num_left_out += 1
            left_out += [name][: 4 - len(left_out)]
            continue
        found += 1
        split = SPLIT_NAMES.get(name.partition("/")[0]) if "/" in name else None
        yield CaptionedImage(name, clean_captions(texts), Path(path), split=split)
    if not found:
        raise FileNotFoundError(
            f"{root} has no captions: write a caption file for each image, such as dog.txt for dog.jpg, or "
            'metadata.jsonl with lines such as {"file_name": "dog.jpg", "captions": ["a dog runs"]}; or give '
            "the path of the dataset's .json, .csv or .parquet file"
        )
    if left_out:
        text = "%s of %s images have no caption file and are left out (%s)"
        logger.warning(text, f"{num_left_out:,}", f"{found + num_left_out:,}", first_names(left_out))


def _read_captions(stem: str) -> list[str] | None:
    for suffix in CAPTION_SUFFIXES:
        try:
            return read_utf8(stem + suffix).split("\n")
        except FileNotFoundError:
            continue
    return None
