"""The JSON of Karpathy's splits: COCO, Flickr8k and Flickr30k captions come in it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from .json_files import read_json
from .records import CaptionedImage, check_captions, check_unique, clean_captions
from .rows import parse_file_name
from .splits import missing_split

_PROBED = 1000  # images looked for to tell whether folders were merged into one


def read_karpathy(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str], split: str
) -> list[CaptionedImage]:
    """Read one split of a Karpathy JSON file, in the file's order.

    An image lies at image_root/filepath/filename. Where the entry has no `filepath`, or COCO's two folders
    were merged into one (neither is there, and images are), it lies at image_root/filename. Its number is
    COCO's own, `cocoid`, and in the other files `imgid`.

    Args:
        json_path: `{"images": [{"filename", "split", "sentences": [{"raw"}], "filepath"?, "cocoid"?,
            "imgid"?}]}`.
        image_root: The folder that the file names are relative to.
        split: "train" means train and restval together, as COCO captioners train on both; any
            other name means itself.

    Raises:
        ValueError: The file is not JSON, not Karpathy's, has nothing in `split`, or has images
            with no caption or of the same name or number.
    """
    path, root = Path(json_path), Path(image_root)
    wanted = {"train", "restval"} if split == "train" else {split}
    entries = _read_entries(path)
    merged = _are_merged(entries, root)
    records = [
        _read_entry(entry, root, merged, f"{path}: images[{position}]")
        for position, entry in enumerate(entries)
        if entry["split"] in wanted
    ]
    if not records:
        raise missing_split(path, split, Counter(entry["split"] for entry in entries))
    check_captions(records, path)
    check_unique(records, path)
    return records


def _read_entries(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a Karpathy JSON file: it has no list named 'images'")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
            raise ValueError(f"{path}: images[{position}] has no 'split'")
    return entries


def _are_merged(entries: list[dict[str, Any]], root: Path) -> bool:
    folders = {str(entry.get("filepath") or "") for entry in entries} - {""}
    if not folders or any((root / folder).is_dir() for folder in folders):
        return False
    return any((root / str(entry.get("filename"))).is_file() for entry in entries[:_PROBED])


def _read_entry(entry: dict[str, Any], root: Path, merged: bool, where: str) -> CaptionedImage:
    try:
        folder, filename = entry.get("filepath") or "", entry["filename"]
        captions = clean_captions(sentence["raw"] for sentence in entry["sentences"])
        nested = str(PurePosixPath(folder, filename))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is not a Karpathy entry: it needs 'filename' and 'sentences', each with 'raw'"
        ) from error
    nested = parse_file_name(nested, where, "filename")
    source = root / (filename if merged else nested)
    numbers = [entry[key] for key in ("cocoid", "imgid") if isinstance(entry.get(key), int)]
    return CaptionedImage(nested, captions, source, image_id=numbers[0] if numbers else None)
