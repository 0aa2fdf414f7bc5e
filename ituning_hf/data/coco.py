"""The caption annotations of COCO, and what else comes in their JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .records import CaptionedImage, clean_captions
from .rows import Row, join_rows, parse_file_name
from .splits import DEFAULT_VAL_SHARE, MissingSplitError, select_split

_PROBED = 10  # images looked for in a folder to tell whether it is theirs


def is_coco(json_path: Path) -> bool:
    """Tell COCO's JSON from others by its key "annotations".

    Parsing COCO's hundreds of megabytes twice would take seconds. A text with these quotes around
    it cannot be part of a string, where JSON puts a backslash before the second one.
    """
    return re.search(rb'"annotations"\s*:', json_path.read_bytes()) is not None


def read_coco_captions(
    json_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    split: str,
    seed: int = 0,
    val_share: float = DEFAULT_VAL_SHARE,
    require_images: bool = True,
) -> list[CaptionedImage]:
    """Read one split of COCO captions, in the order of the file's images.

    Beside `captions_train2017.json`, a file of the same name with `val` in place of `train` is the
    "val" split. Without such a file "val" is taken from the file by lot; see `select_split`.
    Images without annotations are left out: COCO's files list them too.

    `captions_train2017.json` has its images in a folder `train2017`, which is looked for in
    `image_root`, or else beside the file and one level up, there also below `images`. All these
    folders may as well hold the images directly.

    Args:
        json_path: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`.
        image_root: The folder that holds the images or the folders of images; None looks for it.
        split: "train", "val" or "test".
        seed: Decides which images a "val" by lot takes.
        val_share: The probability with which it takes an image, between 0 and 1.
        require_images: False where nobody is going to open them, and they need not be there.

    Raises:
        ValueError: The file is not JSON, not COCO's captions, annotates images that it does not
            list, or has nothing in `split`.
        FileNotFoundError: The images are in none of the folders that were looked in.
    """
    path = Path(json_path)
    root = None if image_root is None else Path(image_root)
    sibling = path.with_name(path.name.replace("train", "val"))
    if sibling == path or not sibling.is_file():
        return select_split(_read_rows(path, root, require_images), split, path, seed, val_share)
    files = {"train": path, "val": sibling}
    if split not in files:
        raise MissingSplitError(
            f"{path} has no images of split {split!r}; it has 'train', and {sibling.name} 'val'"
        )
    rows = [replace(row, split=split) for row in _read_rows(files[split], root, require_images)]
    return select_split(rows, split, files[split], seed, val_share)


def _read_rows(path: Path, image_root: Path | None, require_images: bool) -> list[Row]:
    images = _read_captions(path)
    if not images:
        raise ValueError(f"{path} has no captioned images")
    folder = _find_folder(path, image_root, [name for name, _ in images[:_PROBED]], require_images)
    return join_rows((str(path), Row(name, captions, folder / name)) for name, captions in images)


def _read_captions(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Read the captions of each image that has an annotation, by its file's name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    images, annotations = _find_list(content, "images", path), _find_list(content, "annotations", path)
    names = {
        _field(image, "id", int | str, where): parse_file_name(image.get("file_name"), where, "file_name")
        for where, image in images
    }
    if len(names) < len(images):
        raise ValueError(f"{path}: several images have the same 'id'")
    captions: dict[Any, list[str]] = {image_id: [] for image_id in names}
    for where, annotation in annotations:
        image_id = _field(annotation, "image_id", int | str, where)
        if image_id not in captions:
            raise ValueError(f"{where} is of image {image_id!r}, which is not among the file's images")
        captions[image_id].append(_field(annotation, "caption", str, where))
    return [(names[image_id], clean_captions(texts)) for image_id, texts in captions.items() if texts]


def _find_list(content: Any, key: str, path: Path) -> list[tuple[str, Any]]:
    """Take a list out of the file's content, each entry with its place."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not COCO's JSON: it has no list named {key!r}")
    return [(f"{path}: {key}[{position}]", entry) for position, entry in enumerate(entries)]


def _field(entry: Any, key: str, kind: Any, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"{where} has no {key!r}: give a file of COCO's captions, as captions_train2017.json"
        )
    return value


def _find_folder(path: Path, image_root: Path | None, names: Sequence[str], required: bool) -> Path:
    """Find the folder that holds some of the named images; the likeliest, if there need not be one."""
    part = re.search(r"(train|val|test)\d{4}", path.stem)
    bases = [path.parent, path.parent.parent] if image_root is None else [image_root]
    bases = [folder for base in bases for folder in (base, base / "images")]
    folders = [base / part.group() for base in bases] if part else []
    folders += bases
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    if not required:
        return folders[0]
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"{path}: no image found; looked for {names[0]} (and others) in {looked}. image_root must be the "
        "folder that holds the images, or the folders of images"
    )
