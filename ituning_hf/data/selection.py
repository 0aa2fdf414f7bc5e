"""From the entries of a dataset to the images of a split, by Arrow and NumPy."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import PureWindowsPath

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import UserError
from .columns import CaptionedImages, finish_rows, first_rows, restore_name, take
from .records import MissingSplitError, first_names

logger = logging.getLogger(__name__)

DEFAULT_VAL_SHARE = 0.1


def select_split(
    rows: datasets.Dataset,
    split: str,
    where: str,
    seed: int,
    val_share: float,
    captioned: np.ndarray | None = None,
    content: datasets.Dataset | None = None,
) -> CaptionedImages:
    """Merge the entries of each image and select the images of one split, in the order of the dataset.

    The split "train" includes "restval", because COCO captioners are trained on both. If no entry has a
    split, the images are divided into "train" and "val". Whether an image is in "val" depends only on `seed`
    and its name, so images that are added later do not move the others; except that neither split is left
    empty. The split "all" has all images.

    Args:
        rows: The entries, as written by `write_rows`.
        split: The split.
        where: The dataset, for messages.
        seed: Seed of the splits of a dataset without splits.
        val_share: The share of the images used as "val" then.
        captioned: The result of `find_captioned`: other images are left out. None keeps all.
        content: A dataset with an image in the column `content` for each row, if images are in a table.

    Raises:
        MissingSplitError: There are no images of `split`.
        UserError: Only some entries have a split, the entries of one image contradict each other, two images
            have the same id, or `val_share` has no effect or is out of range.
    """
    table: pa.Table = rows.data.table
    owners = first_rows(table["name"].chunks)  # of the image of each row
    first = np.unique(owners)
    if len(first) < len(owners):
        _require_equal_entries(table, owners, where)
    if captioned is not None:
        first = first[captioned[first]]
    kept = first[_in_split(table, first, split, where, seed, val_share)]
    images = _read_images(rows, owners, kept, content)
    _check_ids(images, f"{where}, split {split!r}")
    return images


def _require_equal_entries(table: pa.Table, owners: np.ndarray, where: str) -> None:
    for column, noun in (("split", "splits"), ("image_id", "ids")):
        values = first_rows(table[column].chunks)
        if len(different := np.flatnonzero(values != values[owners])):
            row = int(different[0])
            name = table["name"][row].as_py()
            one, other = (table[column][i].as_py() for i in (int(owners[row]), row))
            raise UserError(
                f"{where}: the entries of {name!r} have different {noun}, {one} and {other}: correct or "
                "remove one of them"
            )


def _in_split(
    table: pa.Table, first: np.ndarray, split: str, where: str, seed: int, val_share: float
) -> np.ndarray:
    """Return whether each image is in the split."""
    stated = pa.chunked_array([*take(table["split"], first)], pa.string())
    if 0 < stated.null_count < len(stated):
        rows = first[[pc.index(pc.is_null(stated), is_null).as_py() for is_null in (False, True)]]
        known, unknown = (restore_name(table["name"][int(row)].as_py()) for row in rows)
        raise UserError(
            f"{where}: {known!r} has a split and {unknown!r} has none: state the split of all images or of "
            "none, in a column 'split' or by folders such as train and val"
        )
    if len(stated) and not stated.null_count and val_share != DEFAULT_VAL_SHARE:
        raise UserError(f"--val_share {val_share} has no effect: {where} has its own splits. Remove it")
    if split == "all":
        found = np.ones(len(first), bool)
    elif stated.null_count == len(stated):
        stored = (name for chunk in take(table["name"], first) for name in chunk.to_pylist())
        stated = _draw_splits(map(restore_name, stored), len(first), seed, val_share)
        found = pc.equal(stated, split).to_numpy(zero_copy_only=False)
    else:
        wanted = ["train", "restval"] if split == "train" else [split]
        found = pc.is_in(stated, value_set=pa.array(wanted)).to_numpy()
    if not found.any():
        counts = {pair["values"]: pair["counts"] for pair in stated.value_counts().to_pylist()}
        raise MissingSplitError(where, split, counts)
    return found


def _draw_splits(names: Iterable[str], count: int, seed: int, val_share: float) -> pa.Array:
    if not 0 < val_share < 1:
        raise UserError(f"--val_share must be between 0 and 1, got {val_share}")
    numbers = np.fromiter((random_number(seed, name) for name in names), float, count)
    # Neither split is left empty.
    num_val = min(max(int((numbers < val_share).sum()), 1), count - 1)
    is_val = np.zeros(count, bool)
    is_val[np.argsort(numbers, kind="stable")[: max(num_val, 0)]] = True
    return pa.array(np.where(is_val, "val", "train"), pa.string())


def random_number(seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments, not on the machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read_images(
    rows: datasets.Dataset, owners: np.ndarray, kept: np.ndarray, content: datasets.Dataset | None
) -> CaptionedImages:
    """Return the images whose first rows are `kept`, with the captions of all their rows."""
    # A table that contains images is not copied: the other columns get all of its rows, too.
    written = kept if content is None else np.arange(len(owners))
    merged = None
    if len(kept) < len(owners):
        owned = np.flatnonzero(np.isin(owners, kept))
        counts = np.bincount(owners[owned], minlength=len(owners))[written]
        order = owned[np.argsort(owners[owned], kind="stable")]
        merged = order, np.concatenate([[0], counts.cumsum()])
    finished = finish_rows(rows, written, merged)
    if content is None:
        return CaptionedImages(finished)
    combined = datasets.concatenate_datasets([finished, content], axis=1)
    return CaptionedImages(combined, [finished]).select(kept)


def find_captioned(rows: datasets.Dataset, where: str, require_captions: bool) -> np.ndarray | None:
    """Return for each row whether its image has captions, or None if all images have, or none has.

    A warning counts the images without captions.

    Raises:
        UserError: No image has captions, and `require_captions` is true.
    """
    table: pa.Table = rows.data.table
    lengths = pc.list_value_length(table["captions"]).to_numpy()
    if lengths.all():
        return None
    owners = first_rows(table["name"].chunks)
    counts = np.bincount(owners, lengths, minlength=len(owners))
    first = np.unique(owners)
    without = first[counts[first] == 0]
    if len(without) == len(first) and not require_captions:
        return None
    names = first_names([restore_name(table["name"][int(row)].as_py()) for row in without[:4]])
    problem = f"{where}: {len(without):,} of {len(first):,} images have no caption"
    if len(without) == len(first):
        raise UserError(
            f"{problem} ({names}): write some. In a folder, dog.txt has those of dog.jpg, or metadata.jsonl "
            'has lines such as {"file_name": "dog.jpg", "captions": ["a dog runs"]}. Or give the path of the '
            "dataset's .json, .csv or .parquet file"
        )
    if len(without):
        logger.warning("%s and are left out (%s)", problem, names)
    return counts[owners] > 0


def _check_ids(images: CaptionedImages, where: str) -> None:
    ids = images.column("image_id").drop_null()
    counts = ids.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        names = repeated[:4].cast(pa.string()).to_pylist()
        raise UserError(
            f"{where}: {len(repeated)} ids belong to several images ({first_names(names)}): give each "
            "image a unique id"
        )


def check_images_exist(images: CaptionedImages, split: str) -> None:
    """Raise an error for missing image files, and warn about empty files, before training begins.

    An empty file counts as an unreadable image, which training reports and skips.

    Args:
        images: The images.
        split: The name of their split, for messages.

    Raises:
        FileNotFoundError: Files are missing. The message has their number and the first three names.
    """
    missing: list[str] = []
    empty: list[str] = []
    paths = images.column("path")
    if "offset" in images.dataset.column_names:  # many images in a few files
        paths = pa.chunked_array([paths.unique()])
    for chunk in paths.chunks:
        for path in chunk.drop_null().to_pylist():
            if not (size := _file_size(restore_name(path))):
                (missing if size is None else empty).append(path)
    count = f"of {len(images):,} images of split {split!r} are"
    if missing:
        advice = "unpack them there, or give --image_root, the folder that the paths are relative to"
        if PureWindowsPath(missing[0]).drive or "\\" in missing[0]:
            advice = "these are paths of Windows: write them relative to the dataset, with /"
        raise FileNotFoundError(f"{len(missing):,} {count} missing ({first_names(missing)}): {advice}")
    if empty:
        text = "%s %s empty or not files (%s): unpack or copy them again"
        logger.warning(text, f"{len(empty):,}", count, first_names(empty))


def _file_size(path: str) -> int | None:
    """Return the size of a file, 0 for a folder, pipe or device, or None if the path does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
