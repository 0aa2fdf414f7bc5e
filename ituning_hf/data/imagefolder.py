"""Image folders with a `metadata.jsonl`, the convention of Hugging Face's `imagefolder`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.json_files import parse_json
from .records import SPLIT_NAMES, CaptionedImage, clean_captions, parse_file_name, parse_split

METADATA_NAME = "metadata.jsonl"

_CAPTION_KEYS = ("caption", "text", "captions")


def has_metadata(folder: Path) -> bool:
    """Return whether a folder, or one of its split folders, holds `metadata.jsonl`."""
    return any((folder / name / METADATA_NAME).is_file() for name in ("", *SPLIT_NAMES))


def read_imagefolder(root: Path) -> list[CaptionedImage]:
    """Read the entries of an image folder, in the order of its metadata.

    Each line of `metadata.jsonl` is an object with `file_name`, relative to that file, and one of `caption`
    (or `text`) and `captions`, a list. The splits are sub-folders `train`, `val` (or `validation`) and
    `test`, each with its own metadata; or the `split` of each line; or not stated.

    Raises:
        UserError: A line is malformed (the message has its number), or the folder and its sub-folders both
            have metadata.
        FileNotFoundError: There is no metadata.
    """
    names = [name for name in ("", *SPLIT_NAMES) if (root / name / METADATA_NAME).is_file()]
    if not names:
        raise FileNotFoundError(
            f"{root} has no {METADATA_NAME}, and neither has a folder train, val or test in it: write one, "
            f'with a line for each image, like {{"file_name": "dog.jpg", "captions": ["a dog runs"]}}'
            f"{_suggest_files(root)}"
        )
    if ("" in names and len(names) > 1) or {"val", "validation"} <= set(names):
        folders = ", ".join(name or "." for name in names)
        raise UserError(f"{root} has {METADATA_NAME} in {folders}: keep one for each split, or one for all")
    images = []
    for name in names:
        images += [
            replace(image, split=SPLIT_NAMES[name]) if name else image
            for image in _read_metadata(root / name, root)
        ]
    return images


def _suggest_files(root: Path) -> str:
    """Name the folder's files that may be the data set, if they are few."""
    files = sorted(str(path) for path in root.iterdir() if path.suffix.lower() in (".json", ".csv", ".tsv"))
    return f". Or did you mean {' or '.join(files)}?" if 1 <= len(files) <= 3 else ""


def _read_metadata(folder: Path, root: Path) -> Iterator[CaptionedImage]:
    path = folder / METADATA_NAME
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    # str.splitlines would also break at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parse_line(line, f"{path}, line {number}", folder, root)


def _parse_line(line: str, where: str, folder: Path, root: Path) -> CaptionedImage:
    fields = parse_json(line, where)
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, got {line.strip()!r}")
    source = folder / parse_file_name(fields.get("file_name"), where, "file_name")
    return CaptionedImage(
        name=source.relative_to(root).as_posix(),
        captions=_parse_captions(fields, where),
        source=source,
        split=parse_split(fields.get("split"), where),
    )


def _parse_captions(fields: dict[str, Any], where: str) -> tuple[str, ...]:
    given = [key for key in _CAPTION_KEYS if key in fields]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "none"
        raise UserError(f"{where}: give one of 'caption', 'text' and 'captions', got {got}")
    value = fields[given[0]]
    captions = value if given[0] == "captions" else [value]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        wanted = "a list of strings" if given[0] == "captions" else "a string"
        raise UserError(f"{where}: {given[0]!r} must be {wanted}, got {value!r}")
    return clean_captions(captions)
