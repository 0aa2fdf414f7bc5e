"""Read captions from a file."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from ..data.records import CaptionedImage, first_names
from ..utils.errors import UserError
from ..utils.files import parse_json, read_json, read_utf8

_EXPECTED = (
    'a list of {"image_id": 42, "caption": "..."} (COCO results), lines of {"image": "dog.jpg", "captions": '
    '["..."]} (from `ituning caption --output`), or an object {"dog.jpg": "..."}'
)


def image_ids(images: Sequence[CaptionedImage]) -> list[int]:
    """Return the ids of images in result files: those of the dataset if all images have one, else indices."""
    own = [image.image_id for image in images if image.image_id is not None]
    return own if len(own) == len(images) else list(range(len(images)))


def read_predictions(path: Path, images: Sequence[CaptionedImage]) -> list[str]:
    """Read one caption for each image.

    Args:
        path: COCO results, a JSON list of objects with `image_id` and `caption`; or the JSON lines of
            `ituning caption --output`, of which the first caption is used; or a JSON object of captions by
            file name. File names may have more leading folders than in the dataset.
        images: The images.

    Returns:
        Their captions, in the same order.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file has another format, or not exactly one caption for each image.
    """
    ids = image_ids(images)
    indices: dict[int | str, int] = {image_id: index for index, image_id in enumerate(ids)}
    indices |= {image.name: index for index, image in enumerate(images)}
    captions: list[list[str]] = [[] for _ in images]
    unknown = []
    for keys, caption in _read(path):
        index = next((indices[key] for key in keys if key in indices), None)
        if index is None:
            unknown.append(str(keys[0]))
        else:
            captions[index].append(caption)
    labels = [f"{image.name} with id {image_id}" for image, image_id in zip(images, ids, strict=True)]
    problems = {
        "images without a caption": [labels[i] for i, own in enumerate(captions) if not own],
        "images with several captions": [labels[i] for i, own in enumerate(captions) if len(own) > 1],
        "captions of other images": unknown,
    }
    if any(problems.values()):
        found = [f"{len(named)} {what} ({first_names(named)})" for what, named in problems.items() if named]
        raise UserError(
            f"--predictions {path} does not match the {len(images)} images: {'; '.join(found)}. Each image "
            "needs one caption."
        )
    return [own[0] for own in captions]


def _read(path: Path) -> Iterator[tuple[list[int] | list[str], str]]:
    """Yield the captions, each with the id of its image or the possible names, the longest first."""
    content = _parse(path)
    if isinstance(content, dict):
        content = [{"image": name, "caption": caption} for name, caption in content.items()]
    for number, entry in enumerate(content, start=1):
        match entry:
            case {"image_id": int(image_id), "caption": str(caption)} if not isinstance(image_id, bool):
                yield [image_id], caption
            case {"image": str(name), "caption": str(caption)} | {
                "image": str(name),
                "captions": [str(caption), *_],
            }:
                parts = PurePath(name).parts
                yield ["/".join(parts[start:]) for start in range(len(parts))] or [name], caption
            case _:
                shown = reprlib.repr(entry)
                raise UserError(f"--predictions {path}: entry {number} is {shown}, expected {_EXPECTED}.")


def _parse(path: Path) -> Any:
    if path.suffix == ".jsonl":
        # Not `splitlines`, which also splits at characters that JSON need not escape.
        lines = read_utf8(path).split("\n")
        return [parse_json(line, f"--predictions {path}") for line in lines if line.strip()]
    content = read_json(path)
    if not isinstance(content, (list, dict)):
        raise UserError(f"--predictions {path} holds {reprlib.repr(content)}, expected {_EXPECTED}.")
    return content
