"""Captions that were made elsewhere, read from a file."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from ..data.records import first_names
from ..utils.json_files import parse_json
from .images import BenchmarkImages

_EXPECTED = (
    'a list of {"image_id": 42, "caption": "..."}, which are COCO results, lines of {"image": "dog.jpg", '
    '"captions": ["..."]}, which `ituning caption --output` writes, or an object {"dog.jpg": "..."}'
)


def read_predictions(path: Path, benchmark: BenchmarkImages) -> list[str]:
    """Read a caption for each image of a benchmark.

    Args:
        path: COCO results, a JSON list of objects with `image_id` and `caption`; or the JSON lines that
            `ituning caption --output` writes, of which the first caption counts; or a JSON object of captions
            by file name. Files may be named by longer paths than the data set's.
        benchmark: The images.

    Returns:
        Their captions, in their order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none of these; or it has no caption of some images, several, or captions of other
            images. They are named, each kind with its number.
    """
    captions: dict[int, list[str]] = {index: [] for index in range(len(benchmark.images))}
    places = {image_id: index for index, image_id in enumerate(benchmark.ids)}
    names = {image.name: index for index, image in enumerate(benchmark.images)}
    unknown = []
    for key, caption in _read(path):
        index = places.get(key) if isinstance(key, int) else _find(key, names)
        if index is None:
            unknown.append(str(key))
        else:
            captions[index].append(caption)
    problems = [
        _count("without a caption", [i for i, found in captions.items() if not found], benchmark),
        _count("with several captions", [i for i, found in captions.items() if len(found) > 1], benchmark),
        f"{len(unknown)} captions of other images ({first_names(unknown)})" if unknown else "",
    ]
    if any(problems):
        raise ValueError(
            f"--predictions {path} does not fit the {len(captions)} images of split {benchmark.split!r}: "
            f"{'; '.join(filter(None, problems))}. Each image needs one caption."
        )
    return [found[0] for found in captions.values()]


def _read(path: Path) -> Iterator[tuple[int | str, str]]:
    """Give the file's captions, each with the number or the name of its image."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--predictions {path}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--predictions {path} is no text in UTF-8 ({error}), expected {_EXPECTED}."
        ) from error
    content = _parse(text, path)
    if isinstance(content, dict):
        content = [{"image": name, "caption": caption} for name, caption in content.items()]
    for number, entry in enumerate(content, start=1):
        found = _caption_of(entry)
        if found is None:
            raise ValueError(
                f"--predictions {path}: entry {number} is {reprlib.repr(entry)}, expected {_EXPECTED}."
            )
        yield found


def _parse(text: str, path: Path) -> Any:
    try:
        if path.suffix == ".jsonl":
            # Not `splitlines`: JSON need not escape some of what that takes for a line's end.
            return [parse_json(line) for line in text.split("\n") if line.strip()]
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"--predictions {path} is not JSON ({error}), expected {_EXPECTED}.") from error
    if not isinstance(content, (list, dict)):
        raise ValueError(f"--predictions {path} holds {reprlib.repr(content)}, expected {_EXPECTED}.")
    return content


def _caption_of(entry: Any) -> tuple[int | str, str] | None:
    match entry:
        case {"image_id": int(key), "caption": str(caption)} if not isinstance(key, bool):
            return key, caption
        case {"image": str(key), "caption": str(caption)} | {
            "image": str(key),
            "captions": [str(caption), *_],
        }:
            return key, caption
    return None


def _find(name: str, names: dict[str, int]) -> int | None:
    """Find an image by its own name, or by one that begins with folders above it."""
    parts = PurePath(name).parts
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((names[tail] for tail in tails if tail in names), None)


def _count(what: str, indices: Sequence[int], benchmark: BenchmarkImages) -> str:
    if not indices:
        return ""
    named = [f"{benchmark.images[i].name} with id {benchmark.ids[i]}" for i in indices]
    return f"{len(indices)} images {what} ({first_names(named)})"
