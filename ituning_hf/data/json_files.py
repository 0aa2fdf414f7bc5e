"""The JSON files of captioning benchmarks: Karpathy's splits, COCO captions and NoCaps.

NoCaps files have the COCO layout, with an `open_images_id` for each image. Their names, contents and counts
are described at https://nocaps.org/download. The test file has no `annotations`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from ..utils.files import read_json
from .columns import CaptionedImage
from .image_ids import image_id_key, parse_image_id
from .records import (
    SPLIT_NAMES,
    clean_captions,
    find_folder,
    held_out_split,
    parse_file_name,
    splits_in,
)
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
    content = read_json(path)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        folders = [settings.image_root] if settings.image_root else [path.parent, path.parent / "images"]
        rows, own = enumerate(content), held_out_split(path)
        return parse_rows(rows, f"{path}[{{}}]".format, settings, folders, split=own)
    for name in ("image_column", "caption_column"):
        if getattr(settings, name) is not None:
            raise UserError(f"--{name} cannot be used with {path}, which is not a list of rows")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path} is not a Karpathy, COCO or NoCaps file: it has no list named 'images'")
    if any(isinstance(entry, dict) and "open_images_id" in entry for entry in content["images"]):
        return _parse_coco(content, path, settings.image_root, _nocaps_split(path))
    if "annotations" in content:
        return _read_coco(content, path, splits, settings.image_root)
    return _parse_karpathy(content["images"], path, settings.image_root)


def _read_coco(
    content: Any, path: Path, splits: Sequence[str], image_root: Path | None
) -> Iterator[CaptionedImage]:
    """Parse COCO captions; a train file and the val file in the same folder form one dataset."""
    val_file = path.with_name(path.name.replace("train", "val"))
    if val_file == path or not val_file.is_file():
        return _parse_coco(content, path, image_root, held_out_split(path))
    train = _parse_coco(content, path, image_root, "train")
    if [*splits] == ["train"]:
        return train
    val = _parse_coco(read_json(val_file), val_file, image_root, "val")
    return val if [*splits] == ["val"] else chain(train, val)


def _parse_coco(
    content: Any, path: Path, image_root: Path | None, split: str | None
) -> Iterator[CaptionedImage]:
    names, domains, ids = {}, {}, {}
    for where, entry in _entries(content, "images", path):
        image_id = _image_id(entry, "id", where)
        key = image_id_key(image_id)
        if key in names:
            raise UserError(f"{where} has the same 'id' as another image, {image_id!r}")
        names[key] = _file_name(entry.get("file_name"), "file_name", where)
        domains[key], ids[key] = entry.get("domain"), image_id
    captions: dict[int | str | None, list[str]] = {key: [] for key in names}
    if "annotations" in content:
        for where, entry in _entries(content, "annotations", path):
            image_id = _image_id(entry, "image_id", where)
            key = image_id_key(image_id)
            if key not in captions:
                first = next(iter(ids.values()), "no image")
                raise UserError(
                    f"{where} refers to image {image_id!r}, which the file does not contain; its images are "
                    f"{first!r} and so on"
                )
            captions[key].append(_field(entry, "caption", str, where))
        captions = {key: texts for key, texts in captions.items() if texts}
    content.clear()
    bases = [path.parent, path.parent.parent] if image_root is None else [image_root]
    bases = [folder for base in bases for folder in (base, base / "images")]
    folders = [base / part for part in _split_folders(path) for base in bases] + bases
    folder = find_folder(folders, (names[key] for key in captions)) or folders[0]
    for key, texts in captions.items():
        source = folder / names[key]
        yield CaptionedImage(names[key], clean_captions(texts), source, ids[key], domains[key], split)


def _split_folders(path: Path) -> list[str]:
    """Return the names of folders that may have the images of a file: of its split, and of its year."""
    found = re.findall(r"(?:train|val|test)\d{4}", path.stem)
    return found + [name for name, split in SPLIT_NAMES.items() if split in splits_in(path.stem)]


def _nocaps_split(path: Path) -> str:
    words = re.findall(r"(?<![a-z])(val|validation|test)(?![a-z])", path.stem.lower())
    splits = {SPLIT_NAMES[word] for word in words}
    if len(splits) != 1:
        raise UserError(
            f"{path} is a NoCaps file of an unknown split: rename it to nocaps_val_... or nocaps_test_..."
        )
    return splits.pop()


def _parse_karpathy(entries: list[Any], path: Path, image_root: Path | None) -> Iterator[CaptionedImage]:
    def parse(position: int) -> tuple[str, str, tuple[str, ...]]:
        return _parse_karpathy_entry(entries[position], f"{path}: images[{position}]")

    roots = [path.parent / "images", path.parent] if image_root is None else [image_root]
    root = find_folder(roots, (parse(i)[0] for i in range(len(entries))))
    merged = False
    if root is None:  # COCO's folders train2014 and val2014 may have been merged into one
        root = find_folder(roots, (parse(i)[1] for i in range(len(entries))))
        merged = root is not None
    for position, entry in enumerate(entries):
        name, filename, captions = parse(position)
        source = (root or roots[-1]) / (filename if merged else name)
        image_id = parse_image_id(entry.get("cocoid", entry.get("imgid")))
        yield CaptionedImage(name, captions, source, image_id, split=entry["split"])


def _parse_karpathy_entry(entry: Any, where: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the image's path below the image root, its file name, and its captions."""
    try:
        split, filename = entry["split"], entry["filename"]
        captions = clean_captions(sentence["raw"] for sentence in entry["sentences"])
        name = str(PurePosixPath(entry.get("filepath") or "", filename))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{where} is not a Karpathy entry: it needs 'filename', 'split' and 'sentences', each with 'raw'"
        ) from error
    if not isinstance(split, str):
        raise UserError(f"{where}: 'split' must be a string, got {split!r}")
    return _file_name(name, "filename", where), filename, captions


def _file_name(value: Any, key: str, where: str) -> str:
    try:
        return parse_file_name(value, key)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _entries(content: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the content of each entry of a list."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a COCO file: it has no list named {key!r}")
    for position, entry in enumerate(entries):
        yield f"{path}: {key}[{position}]", entry


def _image_id(entry: Any, key: str, where: str) -> int | str:
    value = parse_image_id(entry.get(key) if isinstance(entry, dict) else None)
    return _field({key: value}, key, int | str, where)


def _field(entry: Any, key: str, kind: Any, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise UserError(
            f"{where} has no valid {key!r}, as COCO caption files have (see captions_train2017.json)"
        )
    return value
