"""The JSON of Karpathy's splits: COCO, Flickr8k and Flickr30k captions come in it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from .records import CaptionedImage, check_captions, clean_captions
from .splits import MissingSplitError


def read_karpathy(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str], split: str
) -> list[CaptionedImage]:
    """Read one split of a Karpathy JSON file, in the file's order.

    An image lies at image_root/filepath/filename. Where the entry has no `filepath`, or that
    folder is not there (COCO's two folders merged into one), it lies at image_root/filename.

    Args:
        json_path: `{"images": [{"filename", "split", "sentences": [{"raw"}], "filepath"?}]}`.
        image_root: The folder that the file names are relative to.
        split: "train" means train and restval together, as COCO captioners train on both; any
            other name means itself.

    Raises:
        ValueError: The file is not JSON, not Karpathy's, has nothing in `split`, or has images
            with no caption.
    """
    path, root = Path(json_path), Path(image_root)
    wanted = {"train", "restval"} if split == "train" else {split}
    entries = _read_entries(path)
    records = [
        _read_entry(entry, root, f"{path}: images[{position}]")
        for position, entry in enumerate(entries)
        if entry["split"] in wanted
    ]
    if not records:
        counts = Counter(entry["split"] for entry in entries)
        present = ", ".join(f"{name!r} ({count})" for name, count in counts.items())
        raise MissingSplitError(f"{path} has no images of split {split!r}; it has {present or 'none'}")
    check_captions(records, path)
    return records


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a Karpathy JSON file: it has no list named 'images'")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
            raise ValueError(f"{path}: images[{position}] has no 'split'")
    return entries


def _read_entry(entry: dict[str, Any], root: Path, where: str) -> CaptionedImage:
    try:
        folder, filename = entry.get("filepath") or "", entry["filename"]
        captions = clean_captions(sentence["raw"] for sentence in entry["sentences"])
        nested = PurePosixPath(folder, filename)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is not a Karpathy entry: it needs 'filename' and 'sentences', each with 'raw'"
        ) from error
    source = root / nested if (root / folder).is_dir() else root / filename
    return CaptionedImage(name=str(nested), captions=captions, source=source)
