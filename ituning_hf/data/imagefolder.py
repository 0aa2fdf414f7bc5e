"""Folders of images with a `metadata.jsonl`: the convention of Hugging Face `imagefolder`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..captioner.json_ituning import parse_json
from .records import CaptionedImage, clean_captions
from .rows import Row, join_rows, parse_file_name
from .splits import DEFAULT_VAL_SHARE, SPLIT_NAMES, parse_split, select_split

METADATA_NAME = "metadata.jsonl"

# A folder's own file of another kind, and how many such a message can name.
_OTHER_DATASETS, _FEW = (".json", ".csv", ".tsv"), 3

_CAPTION_KEYS = ("caption", "text", "captions")


def has_metadata(folder: Path) -> bool:
    """Say whether a folder, or one of its split folders, holds `metadata.jsonl`."""
    return any((folder / name / METADATA_NAME).is_file() for name in ("", *SPLIT_NAMES))


def read_imagefolder(
    folder: str | os.PathLike[str], split: str, seed: int = 0, val_share: float = DEFAULT_VAL_SHARE
) -> list[CaptionedImage]:
    """Read one split of an image folder, in the order of its metadata.

    Each line of `metadata.jsonl` is an object with `file_name`, relative to that file, and one
    of `caption` (`text` means the same) or `captions`, a list. Lines of the same image are
    joined. The splits are, in this order:

    1. sub-folders `train`, `val` (or `validation`) and `test`, each with its own metadata;
    2. the lines' `split`, if they have one;
    3. otherwise "train", with a "val" taken from it by lot; see `select_split`.

    Args:
        folder: The folder that holds `metadata.jsonl` or the sub-folders.
        split: "train", "val" or "test".
        seed: Decides which images the third rule takes; unused by the others.
        val_share: The probability with which the third rule takes an image, between 0 and 1.

    Raises:
        ValueError: A line is malformed (named by its number), `split` has no images, images have
            no caption, or metadata lies both in the folder and in sub-folders.
        FileNotFoundError: There is no metadata at all.
    """
    root = Path(folder)
    split_folders = _find_split_folders(root)
    rows = join_rows(_read_rows(root, root)) if not split_folders else []
    for name, part in split_folders.items():
        rows += [replace(row, split=name) for row in join_rows(_read_rows(part, root))]
    return select_split(rows, split, root, seed, val_share)


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Map each split to the sub-folder that holds its metadata; empty if there is none."""
    found = [name for name in SPLIT_NAMES if (root / name / METADATA_NAME).is_file()]
    in_root = (root / METADATA_NAME).is_file()
    if not found and not in_root:
        raise FileNotFoundError(
            f"{root} has no {METADATA_NAME}, nor have its split folders: write one, with a line for each "
            f'image, like {{"file_name": "dog.jpg", "captions": ["a dog runs"]}}{_suggest_files(root)}'
        )
    folders = {SPLIT_NAMES[name]: root / name for name in found}
    if (found and in_root) or len(folders) < len(found):
        places = ", ".join(["."] * in_root + found)
        raise ValueError(f"{root} has {METADATA_NAME} in {places}: which one counts is unclear")
    return folders


def _suggest_files(root: Path) -> str:
    """Name the folder's files that may be the data set, if they are few."""
    files = sorted(str(path) for path in root.iterdir() if path.suffix.lower() in _OTHER_DATASETS)
    return f". Or did you mean {' or '.join(files)}?" if 1 <= len(files) <= _FEW else ""


def _read_rows(folder: Path, root: Path) -> Iterator[tuple[str, Row]]:
    """Read a metadata file: each line's place and what it says."""
    path = folder / METADATA_NAME
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    # Not splitlines(): it also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse_row(line, where, folder, root)


def _parse_row(line: str, where: str, folder: Path, root: Path) -> Row:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()!r}")
    source = folder / parse_file_name(fields.get("file_name"), where, "file_name")
    return Row(
        name=source.relative_to(root).as_posix(),
        captions=_parse_captions(fields, where),
        source=source,
        split=parse_split(fields.get("split"), where),
    )


def _parse_captions(fields: dict[str, Any], where: str) -> tuple[str, ...]:
    given = [key for key in _CAPTION_KEYS if key in fields]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "none"
        raise ValueError(f"{where}: give one of 'caption', 'text' and 'captions', got {got}")
    value = fields[given[0]]
    captions = value if given[0] == "captions" else [value]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        wanted = "a list of strings" if given[0] == "captions" else "a string"
        raise ValueError(f"{where}: {given[0]!r} must be {wanted}, got {value!r}")
    return clean_captions(captions)
