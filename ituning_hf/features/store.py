"""Features of images, computed once and read ever after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import KeysView, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..captioner.configuration_ituning import ITuningConfig
from ..data.images import UnreadableImageError
from ..data.records import CaptionedImage, first_names
from .pictures import Picture, find_changed
from .quantisation import unpack
from .shards import Unreadable, list_shards, read_index, tensor_name
from .spec import FeatureSpec, check_fits_captioner, read_spec


class FeatureStore:
    """The features in a folder that `build_features` wrote.

    Opening reads the headers of its files. The features themselves are mapped into memory, each process
    opening a file when it first needs it, and are read from disk when they are asked for; a store can be
    pickled, and shared by threads. What is added to the folder later is not seen.

    Args:
        folder: The store's.

    Attributes:
        folder: The store's.
        spec: What the features were made by.

    Raises:
        FileNotFoundError: The folder is no store.
        ValueError: A file of it is damaged or another store's, or it is of a later format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.spec: FeatureSpec = read_spec(self.folder)
        self._shards = list_shards(self.folder)
        spec = self.spec.digest()
        self._place: dict[str, tuple[int, Picture]] = {}  # of each image its shard and its picture
        self._unreadable: dict[str, list[Unreadable]] = {}
        for number, path in enumerate(self._shards):
            index = read_index(path, spec)
            self._place |= {name: (number, picture) for name, picture in index.pictures.items()}
            for name, entry in index.unreadable.items():
                self._unreadable.setdefault(name, []).append(entry)
        for name in self._unreadable.keys() & self._place.keys():  # mended since
            del self._unreadable[name]
        self._files: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    @property
    def names(self) -> KeysView[str]:
        """The images that have features."""
        return self._place.keys()

    @property
    def unreadable(self) -> dict[str, str]:
        """Why the others' pictures could not be read when the store was built, by the images' names."""
        return {name: entries[-1].reason for name, entries in self._unreadable.items()}

    @property
    def num_bytes(self) -> int:
        """What the store's files take on disk."""
        return sum(path.stat().st_size for path in self._shards)

    def read(self, name: str) -> torch.Tensor:
        """Read the features of an image.

        Args:
            name: The image's.

        Returns:
            Shape (N, d_v), the class token first. Of dtype bfloat16; float32 where they are stored so.

        Raises:
            UnreadableImageError: The image's picture could not be read when the store was built.
            ValueError: The store does not have the image, or its file is damaged.
        """
        if name in self._unreadable:
            raise UnreadableImageError(self.unreadable[name])
        if name not in self._place:
            raise ValueError(f"{self.folder} has no features of {name!r}")
        shard, _ = self._place[name]
        file = self._open(shard)
        features = file.get_tensor(tensor_name("features", name))
        scales = file.get_tensor(tensor_name("scales", name)) if self.spec.storage == "int8" else None
        # A copy where it is not one already: what is read is mapped, and sending a part of a mapped file to
        # another process sends all of it.
        return features.clone() if scales is None else unpack(features, scales)

    def blank(self) -> torch.Tensor:
        """Return zeros of the shape and dtype that `read` gives."""
        dtype = torch.float32 if self.spec.storage == "float32" else torch.bfloat16
        return torch.zeros(self.spec.num_tokens, self.spec.hidden_size, dtype=dtype)

    def fingerprint(self, records: Sequence[CaptionedImage]) -> str:
        """Return a digest of what the features of some images were made from, and how.

        It does not depend on where the store, the pictures or the encoder lie, nor on other images. The
        features themselves are not read.
        """
        pictures = [
            [r.name, self._place[r.name][1].digest if r.name in self._place else None] for r in records
        ]
        content = json.dumps([self.spec.computation, pictures], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def require(self, records: Sequence[CaptionedImage]) -> None:
        """Refuse images that the store does not have, or of whose picture it has an earlier version.

        Pictures that are not there any more are fine: the store stands in for them. Those that could not be
        read when it was built are accounted for; `read` tells of them.

        Raises:
            ValueError: With how many, and the first three.
        """
        missing = [r.name for r in records if r.name not in self._place and r.name not in self._unreadable]
        if missing:
            named = first_names([*map(repr, missing)])
            raise ValueError(
                f"{self.folder} has no features of {len(missing)} of the {len(records)} images "
                f"({named}): add them by `ituning features build` with this data set and "
                f"--output_dir {self.folder}, which leaves out what is there."
            )
        if changed := self.find_changed(records):
            named = first_names([*map(repr, changed)])
            raise ValueError(
                f"{self.folder} has features of other pictures than {len(changed)} of the {len(records)} "
                f"images have now ({named}): build a new store of this data set in another "
                "folder."
            )

    def require_fits(self, config: ITuningConfig, image_processor: dict[str, Any]) -> None:
        """Refuse a captioner whose own vision encoder would give other features.

        Args:
            config: The captioner's.
            image_processor: The settings of its image preparation, as `to_dict` gives them.

        Raises:
            ValueError: With each thing that differs.
        """
        check_fits_captioner(self.spec, config, image_processor, self.folder)

    def find_changed(self, records: Sequence[CaptionedImage]) -> list[str]:
        """Name those of the images that have features, but of another picture than is there now."""
        return find_changed([(r, self._place[r.name][1]) for r in records if r.name in self._place])

    def was_unreadable(self, record: CaptionedImage) -> bool:
        """Say whether just this picture of an image could not be read before."""
        entries = self._unreadable.get(record.name)
        return entries is not None and Picture.of(record) in [entry.picture for entry in entries]

    def _open(self, shard: int) -> Any:
        if shard not in self._files:
            try:
                self._files[shard] = safe_open(self._shards[shard], framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{self._shards[shard]} was there, and cannot be read any more: {error}"
                ) from error
        return self._files[shard]
