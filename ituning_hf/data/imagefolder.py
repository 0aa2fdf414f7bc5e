"""Folders of images with a `metadata.jsonl`: the convention of Hugging Face `imagefolder`."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .records import CaptionedImage, check_captions, clean_captions

METADATA_NAME = "metadata.jsonl"

# By the name of a sub-folder or in the column `split`; `datasets` writes "validation".
_SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_CAPTION_KEYS = ("caption", "text", "captions")


@dataclass(frozen=True, slots=True)
class _Row:
    """What metadata.jsonl says of one image."""

    file_name: str
    captions: tuple[str, ...]
    split: str | None


def read_imagefolder(
    folder: str | os.PathLike[str], split: str, seed: int = 0, val_share: float = 0.1
) -> list[CaptionedImage]:
    """Read one split of an image folder, in the order of its metadata.

    Each line of `metadata.jsonl` is an object with `file_name`, relative to that file, and one
    of `caption` (`text` means the same) or `captions`, a list. Lines of the same image are
    joined. The splits are, in this order:

    1. sub-folders `train`, `val` (or `validation`) and `test`, each with its own metadata;
    2. the lines' `split`, if they have one;
    3. otherwise "train", with a "val" taken from it. Whether an image is in "val" depends on
       `seed` and its `file_name` alone, so that adding images never moves one to the other
       side; the only exception is that neither side is left empty.

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
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
    root = Path(folder)
    split_folders = _find_split_folders(root)
    if split_folders:
        by_split = {name: _read_rows(part) for name, part in split_folders.items()}
    else:
        by_split = _assign_splits(_read_rows(root), root, seed, val_share)
    if not by_split.get(split):
        present = ", ".join(f"{name!r} ({len(rows)})" for name, rows in by_split.items() if rows)
        raise ValueError(f"{root} has no images of split {split!r}; it has {present or 'none'}")
    records = _to_records(by_split[split], split_folders.get(split, root), root)
    check_captions(records, root)
    return records


def _find_split_folders(root: Path) -> dict[str, Path]:
    """Map each split to the sub-folder that holds its metadata; empty if there is none."""
    found = [name for name in _SPLIT_NAMES if (root / name / METADATA_NAME).is_file()]
    in_root = (root / METADATA_NAME).is_file()
    if not found and not in_root:
        raise FileNotFoundError(f"{root} has no {METADATA_NAME}, nor have its split folders")
    folders = {_SPLIT_NAMES[name]: root / name for name in found}
    if (found and in_root) or len(folders) < len(found):
        places = ", ".join(["."] * in_root + found)
        raise ValueError(f"{root} has {METADATA_NAME} in {places}: which one counts is unclear")
    return folders


def _read_rows(folder: Path) -> list[_Row]:
    """Read a metadata file, joining the lines of the same image."""
    path = folder / METADATA_NAME
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    rows: dict[str, _Row] = {}
    # Not splitlines(): it also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parse_row(line, where)
        known = rows.setdefault(row.file_name, replace(row, captions=()))
        if row.split != known.split:
            raise ValueError(f"{where}: {row.file_name!r} is in two splits")
        rows[row.file_name] = replace(known, captions=known.captions + row.captions)
    return list(rows.values())


def _parse_row(line: str, where: str) -> _Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object, got {line.strip()!r}")
    split = fields.get("split")
    if split is not None and not (isinstance(split, str) and split in _SPLIT_NAMES):
        raise ValueError(f"{where}: 'split' must be train, val or test, got {split!r}")
    return _Row(
        file_name=_parse_file_name(fields.get("file_name"), where),
        captions=_parse_captions(fields, where),
        split=None if split is None else _SPLIT_NAMES[split],
    )


def _parse_file_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: 'file_name' must be a file's name, got {value!r}")
    # A data set from elsewhere must not read files outside its folder, on any system.
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).anchor
    if absolute or ".." in PureWindowsPath(value).parts:  # a Windows path splits at / and at \
        raise ValueError(f"{where}: 'file_name' must stay inside the folder, got {value!r}")
    return PurePosixPath(value).as_posix()


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


def _assign_splits(rows: list[_Row], root: Path, seed: int, val_share: float) -> dict[str, list[_Row]]:
    """Group the rows of a single metadata file by their `split`, or else by lot."""
    named = [row.split for row in rows if row.split is not None]
    if named:
        if len(named) < len(rows):
            raise ValueError(f"{root / METADATA_NAME}: 'split' must be on every line or on none")
        return {name: [row for row in rows if row.split == name] for name in dict.fromkeys(named)}
    lots = {row.file_name: _draw_lot(seed, row.file_name) for row in rows}
    num_val = sum(lot < val_share for lot in lots.values())
    num_val = min(max(num_val, 1), len(rows) - 1)  # neither side is left empty
    val_names = set(sorted(lots, key=lots.__getitem__)[:num_val])
    return {
        "train": [row for row in rows if row.file_name not in val_names],
        "val": [row for row in rows if row.file_name in val_names],
    }


def _draw_lot(seed: int, file_name: str) -> float:
    """Draw a number in [0, 1) that depends on nothing else, on any machine."""
    digest = hashlib.sha256(f"{seed}/{file_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _to_records(rows: list[_Row], folder: Path, root: Path) -> list[CaptionedImage]:
    prefix = folder.relative_to(root)
    return [
        CaptionedImage(
            name=(prefix / row.file_name).as_posix(),
            captions=row.captions,
            source=folder / row.file_name,
        )
        for row in rows
    ]
