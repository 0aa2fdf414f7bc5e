"""Load the captioned images of one split of a dataset in any supported format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..utils.errors import UserError
from .columns import CaptionedImage, CaptionedImages, write_rows
from .folders import find_metadata, read_captioned_files, read_image_folder
from .hf_datasets import Entries, has_parquet, is_hub_name, is_saved_dataset, read_hf_dataset
from .json_files import read_json_dataset
from .records import MissingSplitError
from .scenes import read_scenes
from .selection import DEFAULT_VAL_SHARE, check_images_exist, select_split
from .shards import find_shards, read_shards, select_shards
from .tables import TableSettings, read_table

_CSV = (".csv", ".tsv", ".txt")
_FILES = (".json", ".jsonl", *_CSV, ".parquet")


def load_captioned_images(
    dataset: str | os.PathLike[str],
    split: str,
    *,
    image_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    num_scenes: int = 2000,
    image_column: str | None = None,
    caption_column: str | None = None,
    columns: str | None = None,
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
            - a `.json` file of Karpathy, COCO captions or NoCaps, or a list of rows (`read_json_dataset`);
            - a `.csv`, `.tsv`, `.txt` or `.jsonl` table (`read_table`);
            - a folder with `metadata.jsonl`, `.csv` or `.parquet` (`read_image_folder`), or with a caption
              file beside each image (`read_captioned_files`);
            - a `.parquet` file, a folder of such files, a folder written by `save_to_disk` of `datasets`, or
              a dataset on the Hub, "org/name" or "org/name:config" (`read_hf_dataset`);
            - WebDataset `.tar` shards: a path or fsspec address with braces or wildcards, or a folder
              (`find_shards`).
        split: "train", "val", "test", or "all" for every image; for a Karpathy file also "restval", which
            "train" includes. A file named after "val" or "test" that has no splits is this split.
        image_root: The folder that image paths are relative to. By default the folder of the file or dataset;
            for JSON files see `read_json_dataset`.
        seed: Seed of the scenes, and of the splits of a dataset without splits.
        num_scenes: The number of scenes.
        image_column: The column of images or file names in a table; by default found by type or name.
        caption_column: The column of captions in a table; by default found by name.
        columns: The column names of a CSV file without a header line, separated by commas.
        val_share: The share of the images used as "val" if the dataset has no splits.
        require_captions: Whether to refuse a split without captions, such as the NoCaps test split.
        require_images: Whether to check that the image files exist.

    Raises:
        UserError: `dataset` is none of these, has no images of `split` or is malformed, or its format does
            not use one of the given settings.
        FileNotFoundError: `dataset` or some of its images do not exist.
    """
    root = None if image_root is None else Path(image_root)
    settings = TableSettings(root, image_column, caption_column, columns)
    options = (seed, num_scenes, val_share, require_captions, require_images)
    return next(load_splits(os.fspath(dataset), [split], settings, *options))


def load_splits(
    dataset: str,
    splits: Sequence[str],
    settings: TableSettings,
    seed: int,
    num_scenes: int,
    val_share: float,
    require_captions: bool,
    require_images: bool,
) -> Iterator[CaptionedImages]:
    """Read a dataset once, and yield several of its splits; see `load_captioned_images`.

    Of the built-in scenes, the first split has `num_scenes`, and each other one a tenth.
    """
    if dataset == "scenes":
        refuse_settings("the built-in scenes", dataset, settings, *settings.__dict__)
        if val_share != DEFAULT_VAL_SHARE:
            raise UserError(f"--val_share {val_share} has no effect on the built-in scenes: remove it")
        for position, split in enumerate(splits):
            yield read_scenes(split, num_scenes if position == 0 else max(1, num_scenes // 10), seed)
        return
    entries = _read_entries(dataset, splits, settings, require_captions)
    rows = write_rows(entries.images)
    for split in splits:
        images = select_split(rows, split, dataset, seed, val_share, require_captions, entries.content)
        if require_images:
            check_images_exist(images, split)
        yield images


def _read_entries(
    source: str, splits: Sequence[str], settings: TableSettings, require_captions: bool
) -> Entries:
    """Detect the format of a dataset and read its entries, or those of the splits."""
    path, suffix = Path(source), Path(source).suffix.lower()
    if shards := find_shards(source):
        refuse_settings("tar shards", source, settings, *settings.__dict__)
        return Entries(_read_shards(shards, splits, source, require_captions))
    has_metadata = path.is_dir() and find_metadata(path)
    if not (path.is_file() and suffix in _CSV) and not has_metadata:
        refuse_settings("a dataset that is not a CSV file", source, settings, "columns")
    if path.is_file() and suffix == ".json":
        return Entries(read_json_dataset(path, splits, settings))
    if path.is_file() and suffix in (".jsonl", *_CSV):
        return Entries(read_table(path, settings))
    if has_metadata:
        return Entries(read_image_folder(path, settings))
    is_table = is_saved_dataset(path) or (suffix == ".parquet" and path.is_file())
    if is_table or (path.is_dir() and has_parquet(path)):
        return read_hf_dataset(source, splits, settings)
    if path.is_dir():
        refuse_settings("a folder of caption files", source, settings, "image_column", "caption_column")
        return Entries(read_captioned_files(path, settings.image_root))
    if is_hub_name(source) and suffix not in _FILES:
        return read_hf_dataset(source, splits, settings)
    raise UserError(
        f"no dataset at {source!r}: give 'scenes', a Karpathy, COCO captions or NoCaps .json file, a .csv, "
        ".tsv, .txt, .jsonl or .parquet file, a folder with metadata.jsonl, caption files, Parquet files or "
        ".tar shards, a folder saved by `datasets`, or a Hub dataset, 'org/name' or 'org/name:config'"
    )


def _read_shards(
    shards: Mapping[str, str], splits: Sequence[str], source: str, require_captions: bool
) -> Iterator[CaptionedImage]:
    selected = [select_shards(shards, splits[0], source)]
    for split in splits[1:]:
        with suppress(MissingSplitError):  # raised again when the split is selected
            selected.append(select_shards(shards, split, source))
    for part, stated in selected[:1] if selected[0][1] is None else selected:
        yield from read_shards(part, stated, require_captions)


def refuse_settings(kind: str, source: str, settings: object, *names: str) -> None:
    """Raise a UserError if one of the named settings, which a kind of dataset does not use, is not None."""
    if unused := [name for name in names if getattr(settings, name) is not None]:
        raise UserError(f"--{' and --'.join(unused)} cannot be used with {kind} ({source!r}): remove it")
