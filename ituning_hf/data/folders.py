"""Folders: the format of their content, and images with metadata or with a caption file beside each."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import decode_utf8, parse_json
from .cells import parse_captions
from .columns import CaptionedImage
from .hf_datasets import has_parquet, is_saved_dataset
from .images import FOLDER_LINK, iter_images
from .records import clean_captions
from .splits import find_split_folders, split_of_folder
from .tables import TableSettings, read_table

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_SUFFIXES = (".txt", ".caption")  # in order of preference
_CAPTION_FIELDS = ("captions", "caption", "text")


def folder_format(root: Path) -> str:
    """Return what a folder contains: the first of these.

    1. "metadata": `metadata.jsonl`, `.csv` or `.parquet`, or the same in folders named after splits
    2. "caption files": an image with a caption file beside it, at any depth
    3. "saved": a dataset written by `save_to_disk` of `datasets`
    4. "tar shards": `.tar` files, or the same in folders named after splits
    5. "parquet": Parquet files, at any depth

    A folder with none of these has caption files, too, and lacks them. So a `.tar` or Parquet file among
    captioned images, or an image among Parquet files, changes nothing. What lies directly in the folder is
    looked at first: a million images there are not listed if the first of them has a caption file.
    """
    own, every = (iter_images(root, in_order=False, below=below) for below in (False, True))
    if _metadata_in(root):
        return "metadata"
    if any(map(_has_caption_file, own)):
        return "caption files"
    if find_metadata(root):
        return "metadata"
    if any(map(_has_caption_file, every)):
        return "caption files"
    if is_saved_dataset(root):
        return "saved"
    if find_tars(root):
        return "tar shards"
    return "parquet" if has_parquet(root) else "caption files"


def _metadata_in(folder: Path) -> list[Path]:
    return [path for name in METADATA_NAMES if (path := folder / name).is_file()]


def find_metadata(root: Path) -> list[Path]:
    """Return the metadata files in a folder and in its split folders."""
    return [path for name in ("", *find_split_folders(root)) for path in _metadata_in(root / name)]


def find_tars(root: Path) -> list[Path]:
    """Return the `.tar` files in a folder and in its split folders."""
    folders = [root / name for name in ("", *find_split_folders(root))]
    return [path for folder in folders for path in sorted(folder.glob("[!.]*.tar"))]


def read_image_folder(root: Path, settings: TableSettings) -> Iterator[CaptionedImage]:
    """Read the entries of a folder with `metadata.jsonl`, `.csv` or `.parquet`, in their order.

    Each row has the name of an image file, relative to the metadata, and a caption or a list of captions. The
    splits are an optional column `split`, or else the folders named after them, such as `train` and `val`,
    each with its own metadata or in the names of all images.

    Raises:
        UserError: A row is malformed (the message has its number), or a split has several metadata files.
    """
    paths = find_metadata(root)
    folders = [path.parent.relative_to(root).as_posix() for path in paths]
    splits = [split_of_folder(name) for name in folders]  # None for the folder itself
    if (None in splits and len(splits) > 1) or len({*splits}) < len(splits):
        found = ", ".join(path.relative_to(root).as_posix() for path in paths)
        raise UserError(f"{root} has {found}: keep one per split, or one for all splits")
    for path, name, split in zip(paths, folders, splits, strict=True):
        bases = [path.parent]
        if settings.image_root is not None:
            bases = [settings.image_root / name, settings.image_root]
        table = partial(read_table, path, settings, bases, split=split, absolute=False)
        by_folder = False  # where the folders in the names of all images state splits
        if name == "." and any(find_split_folders(base) for base in bases if base.is_dir()):
            stated = {image.split or _split_of_image(image.name) for image in table()}
            by_folder = None not in stated and stated != {"train"}
        for image in table():
            if name != ".":
                image = replace(image, name=f"{name}/{image.name}")
            elif by_folder and image.split is None:
                image = replace(image, split=_split_of_image(image.name))
            yield image


def read_captioned_files(root: Path, image_root: Path | None) -> Iterator[CaptionedImage]:
    """Read a folder with a caption file beside each image: `dog.jpg` and `dog.txt` or `dog.caption`.

    Subfolders are included, hidden ones and links are not. The splits are the folders named after them, such
    as `train` and `val`, if there are any.

    Args:
        root: The folder of the caption files.
        image_root: The folder of the images, with the same subfolders; by default `root`.

    Raises:
        UserError: A caption file is not UTF-8.
    """
    images, left_out = os.fspath(image_root or root), Counter[str]()
    for path in iter_images(images, left_out):
        name = os.path.relpath(path, images).replace(os.sep, "/")
        captions = _read_caption_file(os.path.join(root, os.path.splitext(name)[0]))
        yield CaptionedImage(name, captions, path, split=_split_of_image(name))
    if left_out[FOLDER_LINK]:
        logger.warning("%s: links to folders are not followed (%s)", images, f"{left_out[FOLDER_LINK]:,}")


def _split_of_image(name: str) -> str | None:
    return split_of_folder(name[: name.find("/") + 1])  # of the first folder


def _has_caption_file(path: str) -> bool:
    stem = os.path.splitext(path)[0]
    return any(os.path.isfile(stem + suffix) for suffix in CAPTION_SUFFIXES)


def _read_caption_file(stem: str) -> tuple[str, ...]:
    for suffix in CAPTION_SUFFIXES:
        with suppress(FileNotFoundError):
            path = stem + suffix
            if captions := parse_caption_file(Path(path).read_bytes(), suffix, path):
                return captions
    return ()


def parse_caption_file(content: bytes, suffix: str, where: str) -> tuple[str, ...]:
    """Return the captions in the file beside an image, or in such a member of a tar shard.

    Args:
        content: The content.
        suffix: `.txt` or `.caption`: each line, which ends in LF or CRLF, is a caption. `.json`: an object
            with captions in the field `captions`, `caption` or `text`, as in a row of a table.
        where: The file or member, for messages.

    Raises:
        UserError: It is not UTF-8, not JSON, or a field has other values than captions.
    """
    text = decode_utf8(content, where)
    if suffix != ".json":
        return clean_captions(text.split("\n"))
    fields = parse_json(text, where)
    try:
        found = (parse_captions(fields.get(name), name) for name in _CAPTION_FIELDS)
        return next(filter(None, found), ()) if isinstance(fields, dict) else ()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
