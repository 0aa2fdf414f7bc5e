"""Load the captioned images of one split of a dataset in any supported format."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..utils.errors import UserError
from .columns import CaptionedImage, CaptionedImages
from .imagefolder import find_metadata, read_imagefolder
from .json_files import read_json_dataset
from .records import MissingSplitError, check_images_exist, first_names
from .scenes import read_scenes
from .shards import find_shards, read_shards, select_shards
from .tables import has_parquet, is_hub_name, is_saved_dataset, read_csv, read_hf_dataset

DEFAULT_VAL_SHARE = 0.1

_TEXT_TABLES = (".csv", ".tsv", ".txt")
_FILES = (".json", *_TEXT_TABLES, ".parquet")


def load_captioned_images(
    dataset: str | os.PathLike[str],
    split: str,
    *,
    image_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    num_scenes: int = 2000,
    image_column: str | None = None,
    caption_column: str | None = None,
    val_share: float = DEFAULT_VAL_SHARE,
    require_captions: bool = True,
    require_images: bool = True,
) -> CaptionedImages:
    """Read one split of a dataset and check that its image files exist.

    Entries of the same image are merged. A dataset without splits is divided into "train" and "val" by `seed`
    and the images' names; see `select_split`.

    Args:
        dataset: One of these. (Pass a folder named scenes as "./scenes".)

            - "scenes", the built-in synthetic scenes;
            - a `.json` file of Karpathy, COCO captions or NoCaps (`read_json_dataset`);
            - a `.csv`, `.tsv` or `.txt` table (`read_csv`);
            - a folder with `metadata.jsonl` (`read_imagefolder`);
            - a `.parquet` file, a folder of such files, a folder written by `save_to_disk` of `datasets`, or
              a dataset on the Hub, "org/name" or "org/name:config" (`read_hf_dataset`);
            - WebDataset `.tar` shards: a path or fsspec address with braces or wildcards, or a folder
              (`find_shards`).
        split: "train", "val" or "test"; for a Karpathy file also "restval", which "train" includes.
        image_root: The folder that image paths in a JSON file or a table are relative to. By default the
            folder of the file or dataset; for JSON files see `read_json_dataset`.
        seed: Seed of the scenes, and of the splits of a dataset without splits.
        num_scenes: The number of scenes.
        image_column: The column of images or file names in a table; by default found by type or name.
        caption_column: The column of captions in a table; by default found by name.
        val_share: The share of the images used as "val" if the dataset has no splits.
        require_captions: Whether to refuse a split without captions, such as the NoCaps test split.
        require_images: Whether to check that the image files exist.

    Raises:
        UserError: `dataset` is none of these, has no images of `split` or is malformed, or its format does
            not use one of the given settings.
        FileNotFoundError: `dataset` or some of its images do not exist.
    """
    source = os.fspath(dataset)
    root = None if image_root is None else Path(image_root)
    if source == "scenes":
        given: dict[str, object] = {
            "image_root": image_root,
            "image_column": image_column,
            "caption_column": caption_column,
        }
        given["val_share"] = None if val_share == DEFAULT_VAL_SHARE else str(val_share)
        _refuse(given, "the built-in scenes", source)
        return read_scenes(split, num_scenes, seed)
    images = _read_entries(source, split, root, image_column, caption_column, require_captions)
    selected = select_split(images, split, source, seed, val_share, require_captions)
    if require_images:
        check_images_exist(selected)
    return CaptionedImages.from_images(selected)


def select_split(
    images: Iterable[CaptionedImage],
    split: str,
    where: str,
    seed: int,
    val_share: float,
    require_captions: bool = True,
) -> list[CaptionedImage]:
    """Merge the entries of each image and select the images of one split, in the order of the dataset.

    The split "train" includes "restval", because COCO captioners are trained on both. If no entry has a
    split, the images are divided into "train" and "val". Whether an image is in "val" depends only on `seed`
    and its name, so images that are added later do not move the others; except that neither split is left
    empty.

    Raises:
        MissingSplitError: There are no images of `split`.
        UserError: Only some entries have a split, the entries of one image contradict each other, an image
            has no caption, two images have the same id, or `val_share` has no effect or is out of range.
    """
    joined = join_entries(images, where)
    stated = [image.split is not None for image in joined]
    if any(stated) and not all(stated):
        raise UserError(f"{where}: 'split' must be given for all images or for none")
    if any(stated):
        if val_share != DEFAULT_VAL_SHARE:
            raise UserError(f"--val_share {val_share} has no effect: {where} has its own splits. Remove it")
    else:
        joined = _draw_splits(joined, seed, val_share)
    wanted = {"train", "restval"} if split == "train" else {split}
    selected = [image for image in joined if image.split in wanted]
    if not selected:
        raise MissingSplitError(where, split, Counter(image.split for image in joined))
    empty = [image.name for image in selected if not image.captions]
    if empty and (require_captions or len(empty) < len(selected)):
        raise UserError(
            f"{where}: {len(empty):,} of {len(selected):,} images have no caption ({first_names(empty)}): "
            "write a caption for each, or remove them"
        )
    ids = Counter(image.image_id for image in selected if image.image_id is not None)
    if repeated := [str(image_id) for image_id, count in ids.items() if count > 1]:
        raise UserError(
            f"{where}: {len(repeated)} ids belong to several images ({first_names(repeated)}): give each "
            "image a unique id"
        )
    return selected


def join_entries(images: Iterable[CaptionedImage], where: str) -> list[CaptionedImage]:
    """Merge the captions of entries with the same name, in order of first occurrence.

    Raises:
        UserError: The entries of one image have different splits or ids.
    """
    first: dict[str, CaptionedImage] = {}
    captions: dict[str, list[str]] = {}
    for image in images:
        other = first.setdefault(image.name, image)
        if (image.split, image.image_id) != (other.split, other.image_id):
            raise UserError(f"{where}: the entries of {image.name!r} have different splits or ids")
        captions.setdefault(image.name, []).extend(image.captions)
    return [replace(image, captions=tuple(captions[name])) for name, image in first.items()]


def _draw_splits(images: Sequence[CaptionedImage], seed: int, val_share: float) -> list[CaptionedImage]:
    if not 0 < val_share < 1:
        raise UserError(f"--val_share must be between 0 and 1, got {val_share}")
    numbers = {image.name: random_number(seed, image.name) for image in images}
    num_val = sum(number < val_share for number in numbers.values())
    num_val = min(max(num_val, 1), len(images) - 1)  # neither split is left empty
    val_names = set(sorted(numbers, key=numbers.__getitem__)[: max(num_val, 0)])
    return [replace(image, split="val" if image.name in val_names else "train") for image in images]


def random_number(seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments, not on the machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read_entries(
    source: str,
    split: str,
    image_root: Path | None,
    image_column: str | None,
    caption_column: str | None,
    require_captions: bool,
) -> Iterable[CaptionedImage]:
    """Detect the format of a dataset and read its entries, or those of the split."""
    path, suffix = Path(source), Path(source).suffix.lower()
    columns = {"image_column": image_column, "caption_column": caption_column}
    if shards := find_shards(source):
        _refuse({"image_root": image_root, **columns}, "tar shards", source)
        return read_shards(*select_shards(shards, split, source), require_captions)
    if path.is_file() and suffix == ".json":
        _refuse(columns, "a JSON file", source)
        return read_json_dataset(path, split, image_root)
    if path.is_file() and suffix in _TEXT_TABLES:
        return read_csv(path, image_root, image_column, caption_column)
    if path.is_dir() and (find_metadata(path) or not (is_saved_dataset(path) or has_parquet(path))):
        _refuse({"image_root": image_root, **columns}, "a folder with metadata.jsonl", source)
        return read_imagefolder(path)
    is_parquet = path.is_file() and suffix == ".parquet"
    if path.is_dir() or is_parquet or (is_hub_name(source) and suffix not in _FILES):
        return read_hf_dataset(source, split, image_root, image_column, caption_column)
    raise UserError(
        f"no dataset at {source!r}: give 'scenes', a Karpathy, COCO captions or NoCaps .json file, a .csv, "
        ".tsv, .txt or .parquet file, a folder with metadata.jsonl, Parquet files or .tar shards, a folder "
        "saved by `datasets`, or a Hub dataset, 'org/name' or 'org/name:config'"
    )


def _refuse(given: Mapping[str, object], kind: str, source: str) -> None:
    if unused := [name for name, value in given.items() if value is not None]:
        raise UserError(f"--{' and --'.join(unused)} cannot be used with {kind} ({source!r}): remove it")
