"""Splits in the names of files and folders.

A name is split into words at everything that is not a letter. `coco_val2014`, `captionsval` and `testset`
name a split; `interval`, `latest` and `device` do not.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

# With the meaning that `datasets` gives them; also of names of its splits, and of values in a column `split`.
SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_NAMES |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")

_SPLITS = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_OTHERS = "annotations?|captions?|coco|data|flickr|images?|nocaps|photos?|pictures?|sets?|splits?"
_WORD = re.compile(f"(?:{_OTHERS})*((?:{_SPLITS})*)(?:{_OTHERS})*")


def splits_in(name: str, entire: bool = False) -> set[str]:
    """Return the splits that the words of a name state.

    Args:
        name: The name of a file or folder.
        entire: Whether a name with other words, such as `my test photos of 2024`, states no split.
    """
    words = [_WORD.fullmatch(word) for word in re.findall(r"[^\W\d_]+", name.lower())]
    if entire and None in words:
        return set()
    return {SPLIT_NAMES[part] for word in words if word for part in re.findall(_SPLITS, word[1])}


def split_of(path: str) -> str | None:
    """Return the split of a file from its path in a dataset: that of the last part that states any."""
    stated = next(filter(None, map(splits_in, reversed(path.split("/")))), set())
    return stated.pop() if len(stated) == 1 else None


@functools.lru_cache
def split_of_folder(name: str) -> str | None:
    """Return the split of which a folder has the images, or None if its name has other words, too."""
    stated = splits_in(name, entire=True)
    return stated.pop() if len(stated) == 1 else None


def held_out_split(path: Path) -> str | None:
    """Return "val" or "test" if this is the split of all images of a file, by its name or else its folder's.

    The images of a train file have no split, because nothing else may be held out.
    """
    stated = splits_in(path.name) or splits_in(path.absolute().parent.name, entire=True)
    return stated.pop() if len(stated) == 1 and stated != {"train"} else None


def find_split_folders(root: str | os.PathLike[str]) -> list[str]:
    """Return the names of the folders in a folder that each have the images of a split."""
    with os.scandir(root) as entries:
        return sorted(x.name for x in entries if x.is_dir() and x.name[0] != "." and split_of_folder(x.name))
