"""Read captions from a file."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from ..data.columns import CaptionedImages, store_name
from ..data.image_ids import image_id_key
from ..data.records import first_names
from ..data.rows import ROW_SUFFIXES, describe_row, is_csv, read_rows
from ..utils.errors import UserError
from ..utils.files import read_json

_KEYS = ("image_id", "image", "file_name", "path")
_EXPECTED = (
    'a list of {"image_id": 42, "caption": "..."} (COCO results), lines of {"image": "dog.jpg", "captions": '
    '["..."]} (from `ituning caption --output`), or an object {"dog.jpg": "..."}'
)


def image_ids(images: CaptionedImages) -> list[int | str]:
    """Return the ids of images in result files: those of the dataset if all images have one, else names."""
    ids = images.column("image_id")
    return (images.column("name") if ids.null_count else ids).to_pylist()


def read_predictions(path: Path, images: CaptionedImages) -> list[str]:
    """Read one caption for each image.

    Args:
        path: COCO results, a JSON list of objects with `image_id` and `caption`; or the output of `ituning
            caption` (.jsonl, .csv, .parquet, or a folder of Parquet files), of which the first caption of an
            image is used; or a JSON object of captions by file name. The ids 42, 42.0 and "42" are equal.
            File names may have more leading folders than in the dataset.
        images: The images.

    Returns:
        Their captions, in the same order.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file has another format, or not exactly one caption for each image.
    """
    ids, names = images.column("image_id").to_pylist(), images.column("name").to_pylist()
    by_id = {image_id_key(image_id): index for index, image_id in enumerate(ids)}
    by_name = {name: index for index, name in enumerate(names)}
    captions: list[str | None] = [None] * len(images)
    repeated, unknown = [], []
    for where, entry in _entries(path):
        image_id, name, caption = _parse(entry, f"--predictions {where}")
        index = None if image_id is None else by_id.get(image_id_key(image_id))
        if index is None:
            index = next(
                (by_name[part] for part in _possible_names(store_name(name)) if part in by_name), None
            )
        if index is None:
            unknown.append(str(name if image_id is None else image_id))
        elif captions[index] is None:
            captions[index] = caption
        else:
            repeated.append(index)

    def label(index: int) -> str:
        return names[index] if ids[index] is None else f"{names[index]} with id {ids[index]}"

    problems = {
        "images without a caption": [label(i) for i, caption in enumerate(captions) if caption is None],
        "images with several captions": [label(i) for i in repeated],
        "captions of other images": unknown,
    }
    if any(problems.values()):
        found = [f"{len(named)} {what} ({first_names(named)})" for what, named in problems.items() if named]
        raise UserError(
            f"--predictions {path} does not match the {len(images)} images: {'; '.join(found)}. Each image "
            "needs one caption."
        )
    return [caption for caption in captions if caption is not None]


def _parse(entry: Any, where: str) -> tuple[int | float | str | None, str, str]:
    """Return the id of an entry's image or None, its name, and its first caption."""
    match entry:
        case {"captions": [str(caption), *_]} | {"caption": str(caption)}:
            match entry:
                case {"image_id": image_id} if image_id_key(image_id) is not None:
                    return image_id, str(image_id), caption
                case {"image": str(name)} | {"file_name": str(name)} | {"path": str(name)}:
                    return None, name, caption
    raise UserError(f"{where} is {reprlib.repr(entry)}, expected {_EXPECTED}.")


def _possible_names(name: str) -> list[str]:
    """Return a file's name with and without its leading folders, the longest first."""
    parts = PurePath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))] or [name]


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a file with their descriptions."""
    if path.is_dir():
        for part in sorted(path.glob("*.parquet")):
            yield from _entries(part)
    elif path.suffix.lower() in ROW_SUFFIXES:
        rows = read_rows(
            path, select=lambda names: [name for name in names if name in (*_KEYS, "caption", "captions")]
        )
        if is_csv(path):  # an image has a row for each of its captions
            rows = (next(same) for _, same in itertools.groupby(rows, lambda row: [*map(row[1].get, _KEYS)]))
        for number, row in rows:
            yield describe_row(path, number), row
    else:
        content = read_json(path)
        if not isinstance(content, (list, dict)):
            raise UserError(f"--predictions {path} holds {reprlib.repr(content)}, expected {_EXPECTED}.")
        if isinstance(content, dict):
            content = [{"image": name, "caption": caption} for name, caption in content.items()]
        for number, entry in enumerate(content):
            yield f"{path}[{number}]", entry
