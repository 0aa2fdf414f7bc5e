"""Read stored features."""

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
from ..data.columns import CaptionedImage
from ..data.images import UnreadableImageError
from ..data.records import first_names
from ..utils.errors import UserError
from .shards import SHARD_PATTERN, ImageVersion, image_version, read_index, unpack
from .spec import FeatureSpec, describe_computation, read_spec

# The contents of this many images are compared, in addition to all sizes. This detects another dataset with
# the same names, even if its files have the same sizes.
_COMPARED_CONTENTS = 64


class FeatureStore:
    """A folder of features written by `build_features`.

    Opening a store reads only the headers of its files. Features are memory-mapped and read from disk when
    they are needed; each process opens a file on first use. A store can be pickled and shared by threads.
    Features that are added to the folder later are not available.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        spec: How the features were computed.
        unreadable: The reasons, by name, for images that could not be read when the store was built.

    Raises:
        FileNotFoundError: The folder is not a feature store.
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
        """The names of the images that have features."""
        return self._versions.keys()

    @property
    def num_bytes(self) -> int:
        """The size of the store's files."""
        return sum(path.stat().st_size for path in self._shards)

    def read(self, name: str) -> torch.Tensor:
        """Read the features of an image, given its name.

        Returns:
            A tensor of shape (N, d_v), class token first, of dtype float32 if stored as such, else bfloat16.

        Raises:
            UnreadableImageError: The image could not be read when the store was built.
            UserError: The image is not in the store.
            OSError: The shard of the image was removed.
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
        return features.clone()  # sending a view to another process would send the whole mapped file

    def blank(self) -> torch.Tensor:
        """Return zeros with the shape and dtype of the result of `read`."""
        dtype = torch.float32 if self.spec.storage == "float32" else torch.bfloat16
        return torch.zeros(self.spec.num_tokens, self.spec.hidden_size, dtype=dtype)

    def fingerprint(self, records: Sequence[CaptionedImage]) -> str:
        """Return a digest of the contents of images and of how their features were computed.

        It does not depend on the paths of the store, the images or the encoder, nor on other images.
        """
        versions = [[record.name, self._versions.get(record.name)] for record in records]
        content = json.dumps([self.spec.computation, versions], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def require(self, records: Sequence[CaptionedImage]) -> None:
        """Raise an error if images are not in the store, or have changed since it was built.

        Image files may be missing. For images that could not be read when the store was built, `read` raises
        an error with the reason.

        Raises:
            UserError: The message has the number of images and the first three names.
        """
        known = self.names | self.unreadable.keys()
        if missing := [record.name for record in records if record.name not in known]:
            raise UserError(
                f"{self.folder} has no features of {len(missing):,} of the {len(records):,} images "
                f"({first_names([*map(repr, missing)])}): run `ituning features build` with this dataset "
                f"and --output_dir {self.folder}, to add them"
            )
        self.require_unchanged(records)

    def require_unchanged(self, records: Sequence[CaptionedImage]) -> None:
        """Raise an error if images have changed since the store was built.

        The sizes of all image files are compared, and the contents of an evenly spaced subset. Missing files
        are accepted.

        Raises:
            UserError: The message has the number of images and the first three names.
        """
        known = [record for record in records if record.name in self._versions]
        step = max(1, len(known) // _COMPARED_CONTENTS)
        changed = []
        for position, record in enumerate(known):
            version = self._versions[record.name]
            try:
                same = record.num_bytes == version.num_bytes
                if same and position % step == 0:
                    same = image_version(record) == version
            except OSError:
                continue
            if not same:
                changed.append(record.name)
        if changed:
            raise UserError(
                f"{len(changed):,} of the {len(records):,} images differ from those in {self.folder} "
                f"({first_names(changed)}): build a new store in another folder, or remove this one first"
            )

    def require_fits(self, config: ITuningConfig, image_processor: dict[str, Any]) -> None:
        """Raise an error if the captioner's vision encoder would compute other features.

        Args:
            config: The captioner's configuration.
            image_processor: The settings of its image processor, as returned by `to_dict`.

        Raises:
            UserError: The message lists the differences.
        """
        fingerprint, layer = config.vision_model_fingerprint, config.vision_feature_layer
        wanted = describe_computation(fingerprint, config.vision_config, image_processor, layer)
        if differences := self.spec.differences(wanted):
            raise UserError(
                f"the features in {self.folder} do not match this captioner's vision encoder: "
                f"{differences} (store, captioner). Use a store that was built with "
                f"{config.vision_model_name_or_path}, or build one with `ituning features build`"
            )
