"""Reading stored features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import KeysView, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..captioner.configuration_ituning import ITuningConfig
from ..data.images import UnreadableImageError
from ..data.records import CaptionedImage, first_names
from ..utils.errors import UserError
from .shards import SHARD_PATTERN, ImageVersion, image_size, image_version, read_index, unpack
from .spec import FeatureSpec, describe_computation, read_spec

# The content of this many images is compared, in addition to the size of all. That detects another data set
# with the same names, and one that was rendered again with files of equal size.
_COMPARED_CONTENTS = 64


class FeatureStore:
    """The features in a folder that `build_features` wrote.

    Opening a store reads the headers of its files. The features are mapped into memory and read from disk
    when they are needed; each process opens a file at its first use. A store can be pickled and shared by
    threads. Features that are added to the folder later are not seen.

    Args:
        folder: The store's folder.

    Attributes:
        folder: The store's folder.
        spec: How the features were computed.
        unreadable: The images that could not be read when the store was built, and why.

    Raises:
        FileNotFoundError: The folder is not a store.
        UserError: One of its files is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.spec: FeatureSpec = read_spec(self.folder)
        self.unreadable: dict[str, str] = {}
        self._shards = sorted(self.folder.glob(SHARD_PATTERN))
        self._versions: dict[str, ImageVersion] = {}
        self._positions: dict[str, tuple[int, int]] = {}  # the shard of each image and its row there
        self._files: dict[int, Any] = {}
        for number, path in enumerate(self._shards):
            index = read_index(path, self.spec)
            self.unreadable |= index.unreadable
            self._versions |= index.images
            self._positions |= {name: (number, row) for row, name in enumerate(index.images)}
        for name in self.unreadable.keys() & self._versions.keys():  # repaired and encoded later
            del self.unreadable[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    @property
    def names(self) -> KeysView[str]:
        """The images that have features."""
        return self._versions.keys()

    @property
    def num_bytes(self) -> int:
        """The size of the store's files."""
        return sum(path.stat().st_size for path in self._shards)

    def read(self, name: str) -> torch.Tensor:
        """Read the features of an image by its name.

        Returns:
            Shape (N, d_v), the class token first. Of dtype bfloat16, or float32 if they are stored so.

        Raises:
            UnreadableImageError: The image could not be read when the store was built.
            UserError: The store does not have the image.
            OSError: The image's shard was removed.
        """
        if name in self.unreadable:
            raise UnreadableImageError(self.unreadable[name])
        if name not in self._positions:
            raise UserError(f"{self.folder} has no features of {name!r}")
        shard, row = self._positions[name]
        if shard not in self._files:
            self._files[shard] = safe_open(self._shards[shard], framework="pt")
        file = self._files[shard]
        features = file.get_slice("features")[row]
        if self.spec.storage == "int8":
            return unpack(features, file.get_slice("scales")[row])
        return features.clone()  # a view of the mapped file would send all of it to another process

    def blank(self) -> torch.Tensor:
        """Return zeros of the shape and dtype that `read` returns."""
        dtype = torch.float32 if self.spec.storage == "float32" else torch.bfloat16
        return torch.zeros(self.spec.num_tokens, self.spec.hidden_size, dtype=dtype)

    def fingerprint(self, records: Sequence[CaptionedImage]) -> str:
        """Return a digest of the images that features were computed from, and of how they were computed.

        It does not depend on the paths of the store, the images or the encoder, nor on other images.
        """
        versions = [[record.name, self._versions.get(record.name)] for record in records]
        content = json.dumps([self.spec.computation, versions], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def require(self, records: Sequence[CaptionedImage]) -> None:
        """Refuse images that the store does not have, or has in another version.

        Image files may be missing: the store replaces them. For images that could not be read when the store
        was built, `read` raises the reason.

        Raises:
            UserError: With the number of images and the first three.
        """
        known = self.names | self.unreadable.keys()
        if missing := [record.name for record in records if record.name not in known]:
            raise UserError(
                f"{self.folder} has no features of {len(missing):,} of the {len(records):,} images "
                f"({first_names([*map(repr, missing)])}): run `ituning features build` with this data set "
                f"and --output_dir {self.folder}, which adds the missing ones"
            )
        self.require_unchanged(records)

    def require_unchanged(self, records: Sequence[CaptionedImage]) -> None:
        """Refuse images whose features are of another version of the image.

        The sizes of all image files are compared, and the contents of some, spread over all images. Missing
        files are accepted.

        Raises:
            UserError: With the number of images and the first three.
        """
        known = [record for record in records if record.name in self._versions]
        step = max(1, len(known) // _COMPARED_CONTENTS)
        changed = []
        for position, record in enumerate(known):
            version = self._versions[record.name]
            try:
                same = image_size(record) == version.num_bytes
                if same and position % step == 0:
                    same = image_version(record) == version
            except OSError:
                continue
            if not same:
                changed.append(record.name)
        if changed:
            raise UserError(
                f"{self.folder} has features of other images than {len(changed):,} of the {len(records):,} "
                f"({first_names(changed)}): build a new store in another folder, or remove this one first"
            )

    def require_fits(self, config: ITuningConfig, image_processor: dict[str, Any]) -> None:
        """Refuse a captioner whose vision encoder would compute other features.

        Args:
            config: The captioner's configuration.
            image_processor: The settings of its image processor, as `to_dict` returns them.

        Raises:
            UserError: With each difference.
        """
        fingerprint, layer = config.vision_model_fingerprint, config.vision_feature_layer
        wanted = describe_computation(fingerprint, config.vision_config, image_processor, layer)
        if differences := self.spec.differences(wanted):
            raise UserError(
                f"the features in {self.folder} are not those of this captioner's vision encoder: "
                f"{differences} (the store's, the captioner's). Give the store that was built with "
                f"{config.vision_model_name_or_path}, or build it with `ituning features build`"
            )
