"""Image folders with a `metadata.jsonl`, as in Hugging Face's `imagefolder` format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import parse_json, read_utf8
from .columns import CaptionedImage
from .records import SPLIT_NAMES, clean_captions, parse_file_name, parse_split

METADATA_NAME = "metadata.jsonl"

_CAPTION_KEYS = ("caption", "text", "captions")


def find_metadata(root: Path) -> list[str]:
    """Return the split folders with a `metadata.jsonl`; "" is the folder itself."""
    return [name for name in ("", *SPLIT_NAMES) if (root / name / METADATA_NAME).is_file()]


def read_imagefolder(root: Path) -> list[CaptionedImage]:
    """Read the entries of an image folder, in the order of its metadata.

    Each line of `metadata.jsonl` is an object with a `file_name`, relative to that file, and either `caption`
    (or `text`), a string, or `captions`, a list. The splits are the subfolders `train`, `val` and
    `test` (or another name in `SPLIT_NAMES`), each with its own metadata, or the optional field `split` of
    each line.

    Raises:
        UserError: A line is malformed (the message has its number), or both the folder and a subfolder have
            metadata.
        FileNotFoundError: There is no metadata.
    """
    names = find_metadata(root)
    if not names:
        raise FileNotFoundError(
            f"{root} and its subfolders train, val and test have no {METADATA_NAME}: write one with a line "
            'for each image, such as {"file_name": "dog.jpg", "captions": ["a dog runs"]}, or give the path '
            "of the dataset's .json, .csv or .parquet file"
        )
    if ("" in names and len(names) > 1) or len({SPLIT_NAMES.get(name) for name in names}) < len(names):
        folders = ", ".join(name or "." for name in names)
        raise UserError(f"{root} has {METADATA_NAME} in {folders}: keep one per split, or one for all splits")
    return [image for name in names for image in _read_metadata(root / name, root, SPLIT_NAMES.get(name))]


def _read_metadata(folder: Path, root: Path, split: str | None) -> Iterator[CaptionedImage]:
    path = folder / METADATA_NAME
    # str.splitlines would also split at characters that JSON allows inside a string.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        fields = parse_json(line, where)
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected a JSON object, got {line.strip()!r}")
        source = folder / parse_file_name(fields.get("file_name"), where, "file_name")
        name, stated = source.relative_to(root).as_posix(), parse_split(fields.get("split"), where)
        yield CaptionedImage(name, _parse_captions(fields, where), source, split=split or stated)


def _parse_captions(fields: dict[str, Any], where: str) -> tuple[str, ...]:
    given = [key for key in _CAPTION_KEYS if key in fields]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "none"
        raise UserError(f"{where}: give one of 'caption', 'text' and 'captions', got {got}")
    value = fields[given[0]]
    captions = value if given[0] == "captions" else [value]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        expected = "a list of strings" if given[0] == "captions" else "a string"
        raise UserError(f"{where}: {given[0]!r} must be {expected}, got {value!r}")
    return clean_captions(captions)
