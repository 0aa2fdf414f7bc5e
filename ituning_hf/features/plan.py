"""What a build has to do: which images, in which shards, and what they take on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.records import CaptionedImage, first_names
from ..utils.output_folders import existing_part
from .pictures import Picture
from .spec import STORE_FILE, FeatureSpec, check_fits
from .store import FeatureStore

_HEADER_BYTES = 300  # of an image: its name, twice, its picture, where its features lie


@dataclass(frozen=True)
class BuildPlan:
    """What a build has to do.

    Args:
        folder: The store's.
        spec: What the features are made by.
        shards: The images of each shard that is to be written.
        present: How many images the store has already, those among them that cannot be read.
        free_bytes: What the disk has left.
    """

    folder: Path
    spec: FeatureSpec
    shards: tuple[tuple[CaptionedImage, ...], ...]
    present: int
    free_bytes: int

    @property
    def num_images(self) -> int:
        """How many images are to be encoded."""
        return sum(map(len, self.shards))

    @property
    def num_bytes(self) -> int:
        """What they take on disk."""
        return self.num_images * (self.spec.bytes_per_image + _HEADER_BYTES)

    def require_space(self) -> None:
        """Refuse to begin what the disk has no room for.

        Raises:
            OSError: With what is needed and what is there.
        """
        if self.num_bytes > self.free_bytes:
            raise OSError(
                f"the features of {self.num_images:,} images take {format_bytes(self.num_bytes)}, and the "
                f"disk of {self.folder} has {format_bytes(self.free_bytes)} left: make room, give a folder "
                "on another disk, or fewer images (storage int8 takes half of bfloat16)."
            )


def plan_build(
    records: Sequence[CaptionedImage],
    folder: str | os.PathLike[str],
    spec: FeatureSpec,
    shard_size: int = 500,
) -> BuildPlan:
    """Find out what a build has to do; nothing is written.

    Images that the store has are left out, and so are those that could not be read before, unless their file
    is another one now. What remains is cut into shards in its order, so that a build that goes on where one
    was killed writes the shards that it would have written.

    Args:
        records: The images; of one name only one.
        folder: The store's, there or not.
        spec: What the features are to be made by.
        shard_size: The most images of a shard.

    Raises:
        ValueError: The store was made by something else, has features of other pictures, or is damaged; or
            two pictures have one name.
        FileExistsError: The folder holds something else.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    folder = Path(folder)
    unique = _one_picture_per_name(records)
    store = _open_store(folder)
    if store is None:
        todo = [unique]
    else:
        check_fits(store.spec, spec, folder)
        _refuse_changed(store, unique)
        known_bad = store.unreadable
        new = [r for r in unique if r.name not in store.names and r.name not in known_bad]
        mended = [r for r in unique if r.name in known_bad and not store.was_unreadable(r)]
        todo = [new, mended]
    shards = tuple(shard for part in todo for shard in cut(part, shard_size))
    present = len(unique) - sum(map(len, shards))
    return BuildPlan(folder, spec, shards, present, _free_bytes(folder))


def cut(records: Sequence[CaptionedImage], size: int) -> list[tuple[CaptionedImage, ...]]:
    """Cut images into groups of a size, the last one smaller, in their order."""
    return [tuple(records[start : start + size]) for start in range(0, len(records), size)]


def format_bytes(number: int) -> str:
    """Write a number of bytes for people: 37.3 GB are 37.3 times 10^9."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


def _one_picture_per_name(records: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    first: dict[str, CaptionedImage] = {}
    for record in records:
        other = first.setdefault(record.name, record)
        if other.source != record.source and Picture.of(other) != Picture.of(record):
            raise ValueError(
                f"two different pictures have the name {record.name!r}, so that one store cannot hold both: "
                "build a store for each split (--splits), or give the files names of their own."
            )
    return list(first.values())


def _open_store(folder: Path) -> FeatureStore | None:
    if (folder / STORE_FILE).exists():
        return FeatureStore(folder)
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(f"{folder} holds files, and no store of features: give another folder.")
    return None


def _refuse_changed(store: FeatureStore, records: Sequence[CaptionedImage]) -> None:
    if changed := store.find_changed(records):
        named = first_names([*map(repr, changed)])
        raise ValueError(
            f"{store.folder} has features of other pictures than {len(changed)} of the {len(records)} images "
            f"have now ({named}): if the pictures were changed, remove the store "
            "and build it anew; if it is another data set's, build into another folder."
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(existing_part(folder)).free
