"""The caption annotations of COCO, and what else comes in their JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .json_files import read_json
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
    `captions_val2017.json` itself is a "val" split, and has no other. Images without annotations are
    left out: COCO's files list them too.

    `captions_train2017.json` has its images in a folder `train2017`, which is looked for in
    `image_root`, or else beside the file and one level up, there also below `images`. All these
    folders may as well hold the images directly. An image's number is its "id", where that is one.

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
    if part := re.search(r"(val|test)\d{4}", path.stem):
        return _read_whole(path, root, part[1], split, require_images)
    sibling = path.with_name(path.name.replace("train", "val"))
    if sibling == path or not sibling.is_file():
        return select_split(_read_rows(path, root, require_images), split, path, seed, val_share)
    files = {"train": path, "val": sibling}
    if split not in files:
        raise MissingSplitError(
            f"{path} has no images of split {split!r}; it has 'train', and {sibling.name} 'val'"
        )
    return _read_whole(files[split], root, split, split, require_images)


def _read_whole(
    path: Path, root: Path | None, own: str, split: str, require_images: bool
) -> list[CaptionedImage]:
    """Read a file all of which is one split."""
    if split != own:
        raise MissingSplitError(
            f"{path} is a {own!r} split by its name, and has no images of split {split!r}: give "
            "another file, or another name to this one"
        )
    rows = [replace(row, split=own) for row in _read_rows(path, root, require_images)]
    return select_split(rows, own, path, 0, DEFAULT_VAL_SHARE)


def _read_rows(path: Path, image_root: Path | None, require_images: bool) -> list[Row]:
    content = read_json(path)
    images = find_images(content, path)
    captions = find_captions(content, images, path)
    if not captions:
        raise ValueError(f"{path} has no captioned images")
    names = {key: images[key]["file_name"] for key in captions}
    part = re.search(r"(train|val|test)\d{4}", path.stem)
    parts = [part.group()] if part else []
    folder = find_folder(path, image_root, parts, list(names.values()), require_images)
    return join_rows(
        (
            str(path),
            Row(names[key], texts, folder / names[key], image_id=key if isinstance(key, int) else None),
        )
        for key, texts in captions.items()
    )


def find_images(content: Any, path: Path) -> dict[int | str, dict[str, Any]]:
    """Take the images out of a file's content: by "id" the fields of each, "file_name" among them.

    Raises:
        ValueError: They are not there, or two have the same "id".
    """
    entries = _find_list(content, "images", path)
    images = {}
    for where, entry in entries:
        key = _field(entry, "id", int | str, where)
        images[key] = entry | {"file_name": parse_file_name(entry.get("file_name"), where, "file_name")}
    if len(images) < len(entries):
        raise ValueError(f"{path}: several images have the same 'id'")
    return images


def find_captions(content: Any, images: Iterable[int | str], path: Path) -> dict[int | str, tuple[str, ...]]:
    """Take the captions out of a file's content, cleaned: those of each image that has annotations.

    Raises:
        ValueError: They are not there, or one is of an image that is not.
    """
    captions: dict[int | str, list[str]] = {key: [] for key in images}
    for where, annotation in _find_list(content, "annotations", path):
        key = _field(annotation, "image_id", int | str, where)
        if key not in captions:
            raise ValueError(f"{where} is of image {key!r}, which is not among the file's images")
        captions[key].append(_field(annotation, "caption", str, where))
    return {key: clean_captions(texts) for key, texts in captions.items() if texts}


def find_folder(
    path: Path,
    image_root: Path | None,
    parts: Sequence[str],
    names: Sequence[str],
    require_images: bool = True,
) -> Path:
    """Find the folder that holds some of the images of an annotation file.

    Args:
        path: The file.
        image_root: Where to look; by default beside the file and one level up.
        parts: Folders that may be in between.
        names: The images' files.
        require_images: False gives the likeliest folder where none of them is anywhere.

    Raises:
        FileNotFoundError: None of the first is in any of the folders.
    """
    bases = [path.parent, path.parent.parent] if image_root is None else [image_root]
    bases = [folder for base in bases for folder in (base, base / "images")]
    folders = [base / part for part in parts for base in bases] + bases
    for folder in folders:
        if any((folder / name).is_file() for name in names[:_PROBED]):
            return folder
    if not require_images:
        return folders[0]
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"{path}: no image found; looked for {names[0]} (and others) in {looked}. image_root must be the "
        "folder that holds the images, or the folders of images"
    )


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
