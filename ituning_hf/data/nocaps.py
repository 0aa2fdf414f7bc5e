"""NoCaps, the benchmark of objects that COCO's captions do not name.

Facts of its files, and where they come from:

- Layout of `nocaps_val_image_info.json` and `nocaps_test_image_info.json`, counts of images and of domains:
  https://nocaps.org/download (source: github.com/nocaps-org/nocaps-org.github.io, `_pages/download.md`).
  They are COCO's, each image with an `open_images_id`, `file_name` being that and `.jpg`; the test file has
  no `annotations`, and the val file came without them at first.
- `nocaps_val_4500_captions.json`, public since, has `annotations`, and `domain` in each image:
  https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json.
- What is handed in is the list of COCO's results with `id` as `image_id`:
  https://evalai.cloudcv.org/web/challenges/challenge-page/355/overview.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .coco import find_captions, find_folder, find_images
from .json_files import read_json
from .records import CaptionedImage, check_captions, check_unique
from .splits import SPLIT_NAMES, MissingSplitError

DOMAINS = ("in-domain", "near-domain", "out-domain")

# The folders that the pictures may lie in: Open Images' archives have one named validation.
_FOLDERS = {"val": ("val", "validation"), "test": ("test",)}


def is_nocaps(json_path: Path) -> bool:
    """Tell NoCaps' JSON from others by its key "open_images_id", without parsing it."""
    return re.search(rb'"open_images_id"\s*:', json_path.read_bytes()) is not None


def read_nocaps(
    json_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    split: str,
    require_captions: bool = True,
    require_images: bool = True,
) -> list[CaptionedImage]:
    """Read a file of NoCaps, which is one split, in the order of its images.

    The pictures are looked for in `image_root`, or else beside the file and one level up, there also
    below `images`, and in all these places below `val` (`validation`) or `test`.

    Args:
        json_path: `nocaps_val_4500_captions.json`, or `nocaps_val_image_info.json` or
            `nocaps_test_image_info.json`, which have no captions.
        image_root: The folder that holds the pictures or their folder; None looks for it.
        split: "val" or "test", as the file is.
        require_captions: Whether a file without captions is refused.
        require_images: False where nobody is going to open them, and they need not be there.

    Returns:
        Records with NoCaps' ids and, where the file says them, domains; without captions where the file
        has none.

    Raises:
        MissingSplitError: The file is another split.
        ValueError: The file is not JSON or not NoCaps', or has no captions though they are required.
        FileNotFoundError: The pictures are in none of the folders that were looked in.
    """
    path = Path(json_path)
    content = read_json(path)
    _check_split(content, path, split)
    images = find_images(content, path)
    if not images:
        raise ValueError(f"{path} has no images")
    has_captions = "annotations" in content
    if require_captions and not has_captions:
        raise ValueError(
            f"{path} is a file of images without captions: they can be captioned, for NoCaps' server, but "
            "neither trained on nor scored here"
        )
    captions = find_captions(content, images, path) if has_captions else {}
    root = None if image_root is None else Path(image_root)
    names = [entry["file_name"] for entry in images.values()]
    folder = find_folder(path, root, _FOLDERS[split], names, require_images)
    records = [
        CaptionedImage(name, captions.get(key, ()), folder / name, *_id_and_domain(key, entry, path))
        for name, (key, entry) in zip(names, images.items(), strict=True)
    ]
    if has_captions:
        check_captions(records, path)
    check_unique(records, path)
    return records


def _check_split(content: Any, path: Path, split: str) -> None:
    """Hold the split asked for against the one that the file, or else its name, says it is."""
    info = content.get("info") if isinstance(content, dict) else None
    described = info.get("description") if isinstance(info, dict) else None
    for text in (str(described), path.stem):
        words = re.findall(r"(?<![a-z])(val|validation|test)(?![a-z])", text.lower())
        if len(own := {SPLIT_NAMES[word] for word in words}) == 1:
            if split not in own:
                raise MissingSplitError(
                    f"{path} has no images of split {split!r}; it is NoCaps' {own.pop()!r}"
                )
            return
    raise ValueError(
        f"{path} says neither val nor test: name it as NoCaps does, nocaps_val_... or nocaps_test_..."
    )


def _id_and_domain(key: int | str, entry: dict[str, Any], path: Path) -> tuple[int, str | None]:
    if not isinstance(key, int):
        raise ValueError(f"{path}: 'id' must be a number, as NoCaps numbers its images, got {key!r}")
    domain = entry.get("domain")
    if domain is not None and domain not in DOMAINS:
        raise ValueError(f"{path}: image {key}: 'domain' must be one of {', '.join(DOMAINS)}, got {domain!r}")
    return key, domain
