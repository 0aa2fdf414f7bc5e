"""The JSON files of captioning benchmarks: Karpathy's splits, COCO captions and NoCaps.

NoCaps files have the COCO layout, with an `open_images_id` for each image. Their names, contents and counts
are described at https://nocaps.org/download. The test file has no `annotations`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from ..utils.files import read_json
from .columns import CaptionedImage
from .image_ids import image_id_key, parse_image_id
from .records import SPLIT_NAMES, clean_captions, parse_file_name

_PROBED = 100  # images to look for in a folder to decide whether it contains the images of a file


def read_json_dataset(path: Path, split: str, image_root: Path | None) -> list[CaptionedImage]:
    """Read the images of a JSON file and their splits, in file order.

    The format is detected from the content.

    - Karpathy: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`, and optionally `filepath`,
      `cocoid` and `imgid`. The path of an image is image_root/filepath/filename, or image_root/filename if
      the folders were merged. The default image root is the folder `images` next to the file, or the file's
      folder. The image's id is its `cocoid`, or else its `imgid`.
    - COCO captions: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. The split
      is determined by the file name: `captions_train2017.json` is "train", and `captions_val2017.json` in the
      same folder is "val". A file with another name, or a train file without a val file, has no splits.
      Images without annotations are skipped. The ids 42, 42.0 and "42" are the same; images keep theirs.
    - NoCaps: the COCO layout with an `open_images_id` and optionally a `domain` for each image, with or
      without `annotations`. The file name determines whether the split is "val" or "test".

    COCO and NoCaps images are searched for in `image_root` (by default the file's folder and its parent), in
    its subfolder `images`, and there in the folder of the split, such as `train2017`.

    Args:
        path: The file.
        split: The requested split; images of other splits may be missing from the result.
        image_root: The folder that contains the images or the folders of images.

    Raises:
        UserError: The file is not JSON, or is malformed.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path} is not a Karpathy, COCO or NoCaps file: it has no list named 'images'")
    if any(isinstance(entry, dict) and "open_images_id" in entry for entry in content["images"]):
        own = _nocaps_split(path)
        parts = [name for name, of_split in SPLIT_NAMES.items() if of_split == own]
        return list(_parse_coco(content, path, image_root, own, parts))
    if "annotations" in content:
        return _read_coco(content, path, split, image_root)
    return _parse_karpathy(content["images"], path, image_root)


def _read_coco(content: Any, path: Path, split: str, image_root: Path | None) -> list[CaptionedImage]:
    """Parse COCO captions; a train file and the val file in the same folder form one dataset."""
    found = re.search(r"(train|val|test)\d{4}", path.stem)
    own, parts = (found[1], [found[0]]) if found else (None, [])
    val_file = path.with_name(path.name.replace("train", "val"))
    if val_file == path or not val_file.is_file():
        return list(_parse_coco(content, path, image_root, None if own == "train" else own, parts))
    images: list[CaptionedImage] = []
    if split != "val":
        images += _parse_coco(content, path, image_root, "train", parts)
    if split != "train":
        val_parts = [part.replace("train", "val") for part in parts]
        images += _parse_coco(read_json(val_file), val_file, image_root, "val", val_parts)
    return images


def _parse_coco(
    content: Any, path: Path, image_root: Path | None, split: str | None, parts: Sequence[str]
) -> Iterator[CaptionedImage]:
    names, domains, ids = {}, {}, {}
    for where, entry in _entries(content, "images", path):
        image_id = _image_id(entry, "id", where)
        key = image_id_key(image_id)
        if key in names:
            raise UserError(f"{where} has the same 'id' as another image, {image_id!r}")
        names[key] = parse_file_name(entry.get("file_name"), where, "file_name")
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
    bases = [path.parent, path.parent.parent] if image_root is None else [image_root]
    bases = [folder for base in bases for folder in (base, base / "images")]
    folders = [base / part for part in parts for base in bases] + bases
    folder = _find_folder(folders, (names[key] for key in captions)) or folders[0]
    for key, texts in captions.items():
        source = folder / names[key]
        yield CaptionedImage(names[key], clean_captions(texts), source, ids[key], domains[key], split)


def _nocaps_split(path: Path) -> str:
    words = re.findall(r"(?<![a-z])(val|validation|test)(?![a-z])", path.stem.lower())
    splits = {SPLIT_NAMES[word] for word in words}
    if len(splits) != 1:
        raise UserError(
            f"{path} is a NoCaps file of an unknown split: rename it to nocaps_val_... or nocaps_test_..."
        )
    return splits.pop()


def _parse_karpathy(entries: list[Any], path: Path, image_root: Path | None) -> list[CaptionedImage]:
    parsed = [_parse_karpathy_entry(entry, f"{path}: images[{i}]") for i, entry in enumerate(entries)]
    roots = [path.parent / "images", path.parent] if image_root is None else [image_root]
    root = _find_folder(roots, (name for name, _, _ in parsed))
    merged = False
    if root is None:  # COCO's folders train2014 and val2014 may have been merged into one
        root = _find_folder(roots, (filename for _, filename, _ in parsed))
        merged = root is not None
    images = []
    for (name, filename, captions), entry in zip(parsed, entries, strict=True):
        source = (root or roots[-1]) / (filename if merged else name)
        image_id = parse_image_id(entry.get("cocoid", entry.get("imgid")))
        images.append(CaptionedImage(name, captions, source, image_id, split=entry["split"]))
    return images


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
    return parse_file_name(name, where, "filename"), filename, captions


def _find_folder(folders: Sequence[Path], names: Iterable[str]) -> Path | None:
    """Return the first folder that contains one of the first images."""
    probed = [name for name, _ in zip(names, range(_PROBED), strict=False)]
    return next((folder for folder in folders if any((folder / name).is_file() for name in probed)), None)


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
