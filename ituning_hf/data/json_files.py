"""The JSON files of captioning benchmarks: Karpathy's splits, COCO captions and NoCaps.

NoCaps files have the COCO layout, with an `open_images_id` for each image. Their names, contents and counts
are described at https://nocaps.org/download. The test file has no `annotations`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from ..utils.files import read_json
from .columns import CaptionedImage
from .image_ids import image_id_key
from .records import find_folder
from .splits import SPLIT_NAMES, held_out_split, splits_in
from .tables import TableSettings, parse_rows


def read_json_dataset(path: Path, splits: Sequence[str], settings: TableSettings) -> Iterator[CaptionedImage]:
    """Read the images of a JSON file and their splits, in file order.

    The format is detected from the content.

    - Karpathy: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`, and optionally `filepath`,
      `cocoid` and `imgid`. The path of an image is image_root/filepath/filename, or image_root/filename if
      the folders were merged. The default image root is the folder `images` next to the file, or the file's
      folder. The image's id is its `cocoid`, or else its `imgid`.
    - COCO captions: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. A word in
      the file name gives the split: `captions_train2017.json` is "train", and `captions_val2017.json` in the
      same folder is "val". A train file without a val file, or a file with another name, has no splits.
      Images without annotations are skipped. The ids 42, 42.0 and "42" are the same; images keep theirs.
    - NoCaps: the COCO layout with an `open_images_id` and optionally a `domain` for each image, with or
      without `annotations`. The file name determines whether the split is "val" or "test".
    - A list of rows with an image and its captions; see `parse_rows`.

    COCO and NoCaps images are searched for in `image_root` (by default the file's folder and its parent), in
    its subfolder `images`, and there in the folder of the split, such as `train2017`.

    Args:
        path: The file. All of it is in memory: for COCO, 2.7 kB for each image with five captions.
        splits: The requested splits, or "all"; images of others may be missing from the result.
        settings: `image_root` is the folder that contains the images or the folders of images.

    Raises:
        UserError: The file is not JSON, or is malformed.
    """
    try:
        content = read_json(path)
    except UserError as error:
        advice = ": if it has JSON lines, rename it to .jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{error}{advice}") from error
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        rows, describe, own = enumerate(content), f"{path}[{{}}]".format, held_out_split(path)
        return parse_rows(rows, describe, settings, settings.folders(path), split=own)
    for name in ("image_column", "caption_column"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} cannot be used with {path}, which is not a list of rows")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path} is not a Karpathy, COCO or NoCaps file: it has no list named 'images'")
    if any(isinstance(entry, dict) and "open_images_id" in entry for entry in content["images"]):
        if (split := held_out_split(path)) is None:
            raise UserError(
                f"{path} is a NoCaps file of an unknown split: rename it to nocaps_val_... or nocaps_test_..."
            )
        return _parse_coco(content, path, settings.image_root, split)
    if "annotations" in content:
        return _read_coco(content, path, splits, settings.image_root)
    return _parse_karpathy(content["images"], path, settings)


def _read_coco(
    content: dict[str, Any], path: Path, splits: Sequence[str], image_root: Path | None
) -> Iterator[CaptionedImage]:
    """Parse COCO captions; a train file and the val file in the same folder form one dataset."""
    val_file = path.with_name(path.name.replace("train", "val"))
    if val_file == path or not val_file.is_file():
        return _parse_coco(content, path, image_root, held_out_split(path))
    images = []
    if [*splits] != ["val"]:
        images.append(_parse_coco(content, path, image_root, "train"))
    content.clear()
    if [*splits] != ["train"]:
        images.append(_parse_coco(read_json(val_file), val_file, image_root, "val"))
    return chain(*images)


def _parse_coco(
    content: Any, path: Path, image_root: Path | None, split: str | None
) -> Iterator[CaptionedImage]:
    found: dict[int | str, tuple[int, dict[str, Any]]] = {}  # the image with a key of its id

    def add_image(position: int, entry: Any) -> None:
        key = _field(entry, "id", image_id_key)
        if key in found:
            raise UserError(f"has the same 'id' as another image, {entry['id']!r}")
        image = {name: entry.get(name) for name in ("file_name", "domain")}
        found[key] = position, {"image_id": entry["id"], "captions": [], **image}

    def add_annotation(position: int, entry: Any) -> None:
        key = _field(entry, "image_id", image_id_key)
        if key not in found:
            first = next((image["image_id"] for _, image in found.values()), "no image")
            raise UserError(
                f"refers to image {entry['image_id']!r}, which the file does not contain; its images are "
                f"{first!r} and so on"
            )
        caption = _field(entry, "caption", lambda value: value if isinstance(value, str) else None)
        found[key][1]["captions"].append(caption)

    for name, add in (("images", add_image), ("annotations", add_annotation)):
        entries = content.get(name, []) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} is not a COCO file: it has no list named {name!r}")
        for position, entry in enumerate(entries):
            try:
                add(position, entry)
            except UserError as error:
                raise UserError(f"{path}: {name}[{position}] {error}") from error
    rows = [row for row in found.values() if row[1]["captions"] or "annotations" not in content]
    bases = [path.parent, path.parent.parent] if image_root is None else [image_root]
    bases = [folder for base in bases for folder in (base, base / "images")]
    folders = [base / part for part in _split_folders(path) for base in bases] + bases
    describe = f"{path}: images[{{}}]".format
    images = parse_rows(rows, describe, TableSettings(), folders, split=split, absolute=False)
    domains = (row["domain"] for _, row in rows)
    return (replace(image, domain=domain) for image, domain in zip(images, domains, strict=True))


def _field(entry: Any, name: str, parse: Callable[[Any], Any]) -> Any:
    value = parse(entry.get(name)) if isinstance(entry, dict) else None
    if value is None:
        raise UserError(f"has no valid {name!r}, as COCO caption files have (see captions_train2017.json)")
    return value


def _split_folders(path: Path) -> list[str]:
    """Return the names of folders that may have the images of a file: of its split, and of its year."""
    found = re.findall(r"(?:train|val|test)\d{4}", path.stem)
    return found + [name for name, split in SPLIT_NAMES.items() if split in splits_in(path.name)]


def _parse_karpathy(entries: list[Any], path: Path, settings: TableSettings) -> Iterator[CaptionedImage]:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for position, entry in enumerate(entries):
            try:
                row = {name: entry[name] for name in ("filename", "split", "sentences")}
                row["filename"] = str(PurePosixPath(entry.get("filepath") or "", entry["filename"]))
                row["image_id"] = entry.get("cocoid", entry.get("imgid"))
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: images[{position}] is not a Karpathy entry: it needs 'filename', 'split' and "
                    "'sentences', each with 'raw'"
                ) from error
            yield position, row

    folders = settings.folders(path)
    describe = f"{path}: images[{{}}]".format
    images = parse_rows(rows(), describe, TableSettings(), folders, absolute=False)
    if find_folder(folders, (row["filename"] for _, row in rows())) is None:
        # COCO's folders train2014 and val2014 may have been merged into one.
        merged = find_folder(folders, (entry["filename"] for entry in entries))
        if merged is not None:
            return (replace(image, source=merged / PurePosixPath(image.name).name) for image in images)
    return images
