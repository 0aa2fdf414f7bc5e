"""From what a user writes after `--dataset` to a list of captioned images."""

from __future__ import annotations

import os
from pathlib import Path

from .imagefolder import read_imagefolder
from .karpathy import read_karpathy
from .records import CaptionedImage, check_images_exist
from .scenes import read_scenes


def load_captioned_images(
    dataset: str | os.PathLike[str],
    split: str,
    *,
    image_root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    num_scenes: int = 2000,
) -> list[CaptionedImage]:
    """Read one split of a data set and make sure that its files are there.

    Args:
        dataset: "scenes" for the built-in drawn scenes, the path of a Karpathy `.json` file, or
            a folder with `metadata.jsonl`. A folder named scenes is given as "./scenes".
        split: "train", "val" or "test".
        image_root: The folder that a Karpathy file's names are relative to. By default the
            `images` folder beside the file if the images are in it, else the file's own.
        seed: Chooses the scenes, and the "val" part of a folder that has none of its own.
        num_scenes: How many scenes.

    Raises:
        ValueError: `dataset` is none of the three, has nothing in `split`, or is malformed.
        FileNotFoundError: `dataset` or some of its images are not there.
    """
    path = Path(dataset)
    is_json = path.suffix.lower() == ".json"
    if image_root is not None and not is_json:
        raise ValueError(f"image_root goes with a Karpathy .json file, not with {str(dataset)!r}")
    if dataset == "scenes":
        return read_scenes(split, num_scenes, seed)
    if is_json and path.is_file():
        records = _read_karpathy(path, image_root, split)
    elif path.is_dir():
        records = read_imagefolder(path, split, seed)
    else:
        raise ValueError(
            f"no data set at {str(dataset)!r}: give 'scenes', the path of a Karpathy .json file, "
            "or a folder with metadata.jsonl"
        )
    check_images_exist(records)
    return records


def _read_karpathy(path: Path, image_root: str | os.PathLike[str] | None, split: str) -> list[CaptionedImage]:
    if image_root is not None:
        return read_karpathy(path, image_root, split)
    beside = path.parent / "images"
    if beside.is_dir():
        records = read_karpathy(path, beside, split)
        # The folder may be another data set's. All images are checked later; one tells here.
        if isinstance(records[0].source, Path) and records[0].source.is_file():
            return records
    return read_karpathy(path, path.parent, split)
