"""Load the captioned images of one split of a dataset in any supported format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from .columns import CaptionedImage, CaptionedImages, write_rows
from .folders import folder_format, read_captioned_files, read_image_folder
from .hf_datasets import Entries, is_hub_name, read_hf_dataset
from .images import IMAGE_SUFFIXES, iter_images
from .json_files import read_json_dataset
from .records import MissingSplitError
from .scenes import read_scenes
from .selection import DEFAULT_VAL_SHARE, check_images_exist, find_captioned, select_split
from .shards import find_shards, read_shards, select_shards
from .tables import TableSettings, read_table

_FILE_FORMATS = {".tar": "tar shards", ".json": "json", ".jsonl": "table", ".parquet": "parquet"}
_FILE_FORMATS |= dict.fromkeys((".csv", ".tsv", ".txt"), "csv")
_TABLE_SETTINGS = ("image_root", "image_column", "caption_column", "columns")


@dataclass(frozen=True)
class LoadSettings(TableSettings):
    """How a dataset is read; see `load_captioned_images`."""

    seed: int = 0
    num_scenes: int = 2000
    val_share: float = DEFAULT_VAL_SHARE
    require_images: bool = True


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
    require_captions: bool | None = True,
    require_images: bool = True,
) -> CaptionedImages:
    """Read one split of a dataset and check that its image files exist.

    Entries of the same image are merged. A dataset without splits is divided into "train" and "val" by `seed`
    and the images' names; see `select_split`.

    Args:
        dataset: "scenes", the built-in synthetic scenes (a folder of this name is "./scenes"); a `.json` file
            (`read_json_dataset`); a `.csv`, `.tsv`, `.txt` or `.jsonl` table (`read_table`); a `.parquet`
            file or a dataset on the Hub (`read_hf_dataset`); `.tar` shards (`find_shards`); or a folder
            (`folder_format`).
        split: "train", "val", "test", or "all" for every image; for a Karpathy file also "restval", which
            "train" includes. A file named after "val" or "test", or in a folder named so, that has no splits
            is this split.
        image_root: The folder that image paths are relative to. By default the folder of the file or dataset;
            for JSON files see `read_json_dataset`.
        seed: Seed of the scenes, and of the splits of a dataset without splits.
        num_scenes: The number of scenes.
        image_column: The column of images or file names in a table; by default found by type or name.
        caption_column: The column of captions in a table; by default found by name.
        columns: The column names of a CSV file without a header line, separated by commas.
        val_share: The share of the images used as "val" if the dataset has no splits.
        require_captions: Whether to refuse a dataset without captions, such as the NoCaps test split. If
            only some images have captions, the others are left out, and counted in a warning. None keeps all,
            and a table needs no caption column and no header line.
        require_images: Whether to check that the image files exist.

    Raises:
        UserError: `dataset` is none of these, has no images of `split` or is malformed, or its format does
            not use one of the given settings.
        FileNotFoundError: `dataset` or some of its images do not exist.
    """
    root = None if image_root is None else Path(image_root)
    table = (root, image_column, caption_column, columns, require_captions)
    settings = LoadSettings(*table, seed, num_scenes, val_share, require_images)
    return next(load_splits(os.fspath(dataset), [split], settings))


def load_splits(dataset: str, splits: Sequence[str], settings: LoadSettings) -> Iterator[CaptionedImages]:
    """Read a dataset once, and yield several of its splits; see `load_captioned_images`.

    Of the built-in scenes, the first split has `num_scenes`, and each other one a tenth.
    """
    seed, val_share = settings.seed, settings.val_share
    if dataset == "scenes":
        refuse_settings("the built-in scenes", dataset, settings)
        if val_share != DEFAULT_VAL_SHARE:
            raise UserError(f"--val_share {val_share} has no effect on the built-in scenes: remove it")
        for position, split in enumerate(splits):
            count = settings.num_scenes if position == 0 else max(1, settings.num_scenes // 10)
            yield read_scenes(split, count, seed)
        return
    entries = _read_entries(dataset, splits, settings)
    rows = write_rows(entries.images)
    captioned = None
    if settings.require_captions is not None:
        captioned = find_captioned(rows, dataset, settings.require_captions)
    for split in splits:
        images = select_split(rows, split, dataset, seed, val_share, captioned, entries.content)
        if settings.require_images:
            check_images_exist(images, split)
        yield images


def find_format(source: str) -> str | None:
    """Return the format of a dataset, found by its name and the names in its folder, or None."""
    path, suffix = Path(source), Path(source).suffix.lower()
    if path.is_dir():
        return folder_format(path)
    if path.is_file() or suffix == ".tar":  # of which there may be several, with braces or wildcards
        return _FILE_FORMATS.get(suffix)
    return "hub" if is_hub_name(source) and suffix not in (*_FILE_FORMATS, *IMAGE_SUFFIXES) else None


def is_dataset(argument: str) -> bool:
    """Return whether an argument is a dataset, and not a picture, a folder of pictures or other files.

    A folder with pictures is a folder of pictures, whatever it has about them.
    """
    if os.path.isdir(argument):
        has_image = any(iter_images(argument, in_order=False))
        return not has_image and find_format(argument) in ("saved", "tar shards", "parquet")
    return find_format(argument) is not None and not argument.lower().endswith(".txt")


def _read_entries(source: str, splits: Sequence[str], settings: LoadSettings) -> Entries:
    """Read the entries of a dataset in any format, or those of the splits."""
    path, kind = Path(source), find_format(source)
    if kind not in ("csv", "metadata", "tar shards"):
        refuse_settings("a dataset that is not a CSV file", source, settings, ["columns"])
    match kind:
        case "tar shards":
            refuse_settings("tar shards", source, settings)
            return Entries(_read_shards(find_shards(source), splits, source))
        case "json":
            return Entries(read_json_dataset(path, splits, settings))
        case "csv" | "table":
            return Entries(read_table(path, settings))
        case "metadata":
            return Entries(read_image_folder(path, settings))
        case "saved" | "parquet" | "hub":
            return read_hf_dataset(source, splits, settings)
        case "caption files":
            unused = ["image_column", "caption_column"]
            refuse_settings("a folder of caption files", source, settings, unused)
            return Entries(read_captioned_files(path, settings.image_root))
    problem = f"no dataset at {source!r}"
    if path.is_file():
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        problem = f"{source!r} is {'a picture' if is_image else 'not a dataset (unpack archives first)'}"
    raise UserError(
        f"{problem}: give 'scenes', a Karpathy, COCO captions or NoCaps .json file, a .csv, "
        ".tsv, .txt, .jsonl or .parquet file, a folder with metadata.jsonl, caption files, Parquet files or "
        ".tar shards, a folder saved by `datasets`, or a Hub dataset, 'org/name' or 'org/name:config'"
    )


def _read_shards(shards: Mapping[str, str], splits: Sequence[str], source: str) -> Iterator[CaptionedImage]:
    selected = [select_shards(shards, splits[0], source)]
    for split in splits[1:]:
        with suppress(MissingSplitError):  # raised again when the split is selected
            selected.append(select_shards(shards, split, source))
    for part, stated in selected[:1] if selected[0][1] is None else selected:
        yield from read_shards(part, stated)


def refuse_settings(kind: str, source: str, settings: object, names: Sequence[str] = _TABLE_SETTINGS) -> None:
    """Raise a UserError if one of the named settings, which a kind of dataset does not use, is not None."""
    if unused := [name for name in names if getattr(settings, name) is not None]:
        raise UserError(f"--{' and --'.join(unused)} cannot be used with {kind} ({source!r}): remove it")
