"""From what a user writes after `--dataset` to a list of captioned images."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco import is_coco, read_coco_captions
from .csv_files import read_csv
from .hf_datasets import has_parquet, is_hub_name, is_saved_dataset, read_hf_dataset
from .imagefolder import has_metadata, read_imagefolder
from .karpathy import read_karpathy
from .nocaps import is_nocaps, read_nocaps
from .records import CaptionedImage, check_images_exist
from .scenes import read_scenes
from .splits import DEFAULT_VAL_SHARE

_JSON, _CSV, _PARQUET = (".json",), (".csv", ".tsv", ".txt"), (".parquet",)
_DEFAULTS = {"image_root": None, "image_column": None, "caption_column": None, "val_share": DEFAULT_VAL_SHARE}


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of data set.

    Args:
        name: For messages.
        fits: Whether a data set, as the user wrote it, is of this kind.
        read: Called with the data set, the split, and its options by name.
        options: The settings that it takes.
    """

    name: str
    fits: Callable[[str], bool]
    read: Callable[..., list[CaptionedImage]]
    options: tuple[str, ...]


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
) -> list[CaptionedImage]:
    """Read one split of a data set and make sure that its files are there.

    Args:
        dataset: One of these. A folder named scenes is given as "./scenes".

            - "scenes" for the built-in drawn scenes;
            - the path of a `.json` file, Karpathy's (`read_karpathy`), COCO's captions
              (`read_coco_captions`) or NoCaps' (`read_nocaps`), which is told by its content;
            - the path of a `.csv`, `.tsv` or `.txt` table (`read_csv`);
            - a folder with `metadata.jsonl` (`read_imagefolder`);
            - a `.parquet` file, a folder with such files, a folder that `save_to_disk` of
              `datasets` wrote, or a data set of the Hub, "org/name" or "org/name:config"
              (`read_hf_dataset`).
        split: "train", "val" or "test".
        image_root: The folder that the file names in a JSON file or a table are relative to. By
            default the folder of the file or the data set; of a Karpathy file, the `images` folder
            beside it if the images are in it; of COCO's, see `read_coco_captions`.
        seed: Chooses the scenes, and the "val" part of a data set that has none of its own.
        num_scenes: How many scenes.
        image_column: The column of images or their file names in a table; found by default.
        caption_column: The column of captions in a table; found by default.
        val_share: Share of the images that become "val" where the data set has no splits.
        require_captions: False takes NoCaps' files of images without captions too; an image without
            captions among others that have some is refused all the same.
        require_images: False where nobody is going to open them, and they need not be there.

    Raises:
        ValueError: `dataset` is none of these, has nothing in `split`, is malformed, or does not
            take one of the settings given.
        FileNotFoundError: `dataset` or some of its images are not there.
        ImportError: It takes the library `datasets`, which is not installed.
    """
    settings = {
        "image_root": image_root,
        "image_column": image_column,
        "caption_column": caption_column,
        "val_share": val_share,
        "seed": seed,
        "num_scenes": num_scenes,
        "require_captions": require_captions,
        "require_images": require_images,
    }
    kind = _find_kind(str(dataset))
    given = [name for name, default in _DEFAULTS.items() if settings[name] != default]
    foreign = [name for name in given if name not in kind.options]
    if foreign:
        raise ValueError(
            f"{' and '.join(foreign)}: of no use with {kind.name} ({str(dataset)!r}); leave it out"
        )
    records = kind.read(dataset, split, **{name: settings[name] for name in kind.options})
    if require_images:
        check_images_exist(records)
    return records


def count_splits(dataset: str | os.PathLike[str], **settings: Any) -> dict[str, int]:
    """Count the images of each split of a data set, for messages; files need not be there.

    Args:
        dataset: As of `load_captioned_images`.
        settings: Its keyword arguments.

    Returns:
        By split, those that are there; "restval" of a Karpathy file by itself, and nothing for drawn scenes,
        of which there are as many as one asks for.
    """
    kind = _find_kind(str(dataset))
    if kind.read is _read_scenes:
        return {}
    splits = ("train", "restval", "val", "test") if kind.read is _read_karpathy else ("train", "val", "test")
    settings = _DEFAULTS | {"seed": 0, "require_captions": False, "require_images": False} | settings
    counts = {}
    for split in splits:
        with suppress(ValueError):  # it has no such split
            counts[split] = len(kind.read(dataset, split, **{name: settings[name] for name in kind.options}))
    if "restval" in counts:
        counts["train"] -= counts["restval"]
    return {split: count for split, count in counts.items() if count}


def _find_kind(dataset: str) -> _Kind:
    for kind in _KINDS:
        if kind.fits(dataset):
            return kind
    raise ValueError(
        f"no data set at {dataset!r}: give 'scenes', the path of a Karpathy, COCO captions or NoCaps .json "
        "file, of a .csv, .tsv, .txt or .parquet file, a folder with metadata.jsonl or Parquet files, a "
        "folder saved by `datasets`, or a name on the Hub, 'org/name' or 'org/name:config'"
    )


def _is_file(dataset: str, suffixes: tuple[str, ...]) -> bool:
    path = Path(dataset)
    return path.suffix.lower() in suffixes and path.is_file()


def _is_for_datasets(dataset: str) -> bool:
    path = Path(dataset)
    if path.is_dir():
        return not has_metadata(path) and (is_saved_dataset(path) or has_parquet(path))
    if path.suffix.lower() in _JSON + _CSV + _PARQUET:
        return _is_file(dataset, _PARQUET)
    return is_hub_name(dataset)


def _read_scenes(dataset: object, split: str, num_scenes: int, seed: int) -> list[CaptionedImage]:
    return read_scenes(split, num_scenes, seed)


def _read_nocaps(
    path: str, split: str, image_root: str | os.PathLike[str] | None, **options: bool
) -> list[CaptionedImage]:
    return read_nocaps(path, image_root, split, **options)


def _read_coco(
    path: Path, split: str, image_root: str | os.PathLike[str] | None, **options: Any
) -> list[CaptionedImage]:
    return read_coco_captions(path, image_root, split, **options)


def _read_karpathy(
    dataset: str | os.PathLike[str], split: str, image_root: str | os.PathLike[str] | None
) -> list[CaptionedImage]:
    path = Path(dataset)
    if image_root is not None:
        return read_karpathy(path, image_root, split)
    beside = path.parent / "images"
    if beside.is_dir():
        records = read_karpathy(path, beside, split)
        # The folder may be another data set's. All images are checked later; one tells here.
        if any(isinstance(record.source, Path) and record.source.is_file() for record in records):
            return records
    return read_karpathy(path, path.parent, split)


_TABLE = ("image_root", "image_column", "caption_column", "val_share", "seed")

# The first that fits is taken.
_KINDS = (
    _Kind("the built-in scenes", lambda name: name == "scenes", _read_scenes, ("num_scenes", "seed")),
    _Kind(
        "a NoCaps file",
        lambda name: _is_file(name, _JSON) and is_nocaps(Path(name)),
        _read_nocaps,
        ("image_root", "require_captions", "require_images"),
    ),
    _Kind(
        "a COCO captions file",
        lambda name: _is_file(name, _JSON) and is_coco(Path(name)),
        _read_coco,
        ("image_root", "val_share", "seed", "require_images"),
    ),
    _Kind("a Karpathy file", lambda name: _is_file(name, _JSON), _read_karpathy, ("image_root",)),
    _Kind("a text table", lambda name: _is_file(name, _CSV), read_csv, _TABLE),
    _Kind("a `datasets` data set", _is_for_datasets, read_hf_dataset, _TABLE),
    _Kind("a folder with metadata.jsonl", os.path.isdir, read_imagefolder, ("val_share", "seed")),
)
