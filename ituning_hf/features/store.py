"""The format of stored features, and reading them: `store.json` and memory-mapped Arrow files.

Opening Arrow files does not parse an entry for each image, as with the JSON headers of safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import encoder_family
from ..captioner.images_ituning import pil_image_processor
from ..data.columns import CaptionedImage, CaptionedImages, restore_name, store_name
from ..data.images import UnreadableImageError
from ..data.inputs import PixelInputs
from ..data.records import first_names
from ..utils.errors import UserError
from ..utils.files import read_json

STORE_FILE = "store.json"
SHARD_PATTERN = "features-*.arrow"
# The other settings of an image processor are class names, which change between library versions.
_IMAGE_PROCESSOR_FIELDS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
# Whether images have changed is checked on evenly spaced ones: the sizes of at most so many files, and the
# contents of so many, which detect another dataset with the same names and sizes.
_COMPARED_SIZES = 10_000
_COMPARED_CONTENTS = 64


def hash_bytes(content: bytes) -> int:
    """Return the first 64 bits of the SHA-256 of some bytes."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def image_version(image: CaptionedImage) -> tuple[int, int]:
    """Return the size and the digest of an image's bytes, to detect another image of the same name."""
    content = image.read()
    return len(content), hash_bytes(content)


@dataclass(frozen=True)
class FeatureSpec:
    """How the features of a store were computed and are stored: the content of `store.json`."""

    vision_model: dict[str, Any]  # the fields of `ITuningConfig` that describe the encoder
    image_processor: dict[str, Any]  # the settings of the image processor
    vision_feature_layer: int  # the stored hidden state; see `ITuningConfig`
    storage: str  # the stored data type, one of `STORAGES`
    mixed_precision: str  # one of `MIXED_PRECISIONS`; "no" means that of the weights, fp32 on a CPU
    num_tokens: int  # N, including the class token
    hidden_size: int  # d_v, the hidden size of the encoder

    @classmethod
    def of(cls, config: ITuningConfig, processor: dict[str, Any], storage: str, precision: str) -> Self:
        """Describe the features for a captioner's configuration and its image processor's `to_dict`."""
        vision, prefixes = config.vision_config, ("vision_config", "vision_model_")
        encoder = {name: value for name, value in config.to_dict().items() if name.startswith(prefixes)}
        # Without tuples and enums, as they are read back.
        encoder, processor = json.loads(json.dumps([encoder, processor]))
        _, height, width = PixelInputs(pil_image_processor(processor)).blank().shape
        num_tokens = encoder_family(vision).num_tokens(vision, height, width)
        layer = config.vision_feature_layer
        return cls(encoder, processor, layer, storage, precision, num_tokens, vision.hidden_size)

    @property
    def computation(self) -> dict[str, Any]:
        """All settings that determine the stored values. They do not include the path of the encoder."""
        vision = ITuningConfig(**self.vision_model).vision_config
        family, processor = encoder_family(vision), self.image_processor
        layer = self.vision_feature_layer
        if layer != -1 or not family.has_final_norm:  # else no other index selects the normed output
            layer %= vision.num_hidden_layers + 1
        return {
            "storage": self.storage,
            "mixed_precision": self.mixed_precision,
            "vision_model_fingerprint": self.vision_model["vision_model_fingerprint"],
            "vision_feature_layer": layer,
            **{f"vision_config.{name}": getattr(vision, name) for name in family.architecture},
            **{f"image_processor.{name}": processor.get(name) for name in _IMAGE_PROCESSOR_FIELDS},
        }

    def make_image_processor(self) -> Any:
        """Return the encoder's image processor."""
        return pil_image_processor(self.image_processor)

    @property
    def num_bytes(self) -> int:
        """The size of an image's features on disk; int8 has a float32 scale for each token."""
        token = self.hidden_size * getattr(torch, self.storage).itemsize
        return self.num_tokens * (token + 4 if self.storage == "int8" else token)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the store's files, with a row for each image.

        `key` is the hash of `name`; `num_bytes` and `digest` describe the image file, or `error` says why it
        could not be read, and `features` is null.
        """
        columns = {"key": pa.uint64(), "name": pa.string(), "num_bytes": pa.int64(), "digest": pa.uint64()}
        return pa.schema(columns | {"error": pa.string(), "features": pa.binary(self.num_bytes)})

    def pack(self, features: torch.Tensor) -> torch.Tensor:
        """Convert the features of images, (B, N, d_v), to the bytes that are stored, (B, `num_bytes`).

        For int8 the largest absolute value of each token maps to 127, so the error is at most half of that
        step, plus rounding to bfloat16 when the features are read.
        """
        features = features.float()
        if self.storage != "int8":
            return features.to(getattr(torch, self.storage)).flatten(1).view(torch.uint8)
        scales = features.abs().amax(dim=-1) / 127  # (B, N)
        steps = features / scales.masked_fill(scales == 0, 1).unsqueeze(-1)
        steps = steps.round().clamp(-127, 127).to(torch.int8)
        return torch.cat([scales.view(torch.uint8), steps.flatten(1).view(torch.uint8)], dim=1)

    def unpack(self, content: torch.Tensor) -> torch.Tensor:
        """Convert the bytes of an image, (`num_bytes`), to features, (N, d_v); int8 to bfloat16."""
        shape = (self.num_tokens, self.hidden_size)
        if self.storage != "int8":
            return content.view(getattr(torch, self.storage)).view(shape)
        scales, steps = content[: 4 * self.num_tokens], content[4 * self.num_tokens :]
        scales = scales.view(torch.float32).unsqueeze(-1)  # (N, 1)
        return (steps.view(torch.int8).view(shape) * scales).to(torch.bfloat16)


class FeatureStore:
    """A folder of features written by `build_features`; `spec` says how they were computed.

    Its files are mapped into memory, and so shared by processes. A store can be pickled, as its path, and
    used by threads. Features that are added to the folder later are not available.

    Raises:
        UserError: The folder is not a feature store, or one of its files is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.spec = FeatureSpec(**read_json(self.folder / STORE_FILE))
        except (OSError, TypeError, UserError) as error:
            raise UserError(
                f"{folder} is not a feature store ({error}): create one by `ituning features build`"
            ) from error
        shards = [_open_shard(path, self.spec.schema) for path in sorted(self.folder.glob(SHARD_PATTERN))]
        self._table = pa.concat_tables([self.spec.schema.empty_table(), *shards])
        self._features = self._table["features"]  # taking the column takes longer than reading from it
        failed = self._table["error"].is_valid().to_numpy()
        keys = self._table["key"].to_numpy()
        # Of an image's rows, one with features comes first: it may have been unreadable and then repaired.
        order = np.lexsort((failed, keys))
        unique, first = np.unique(keys[order], return_index=True)
        # The last entries are those of images that are not in the store.
        self._keys, self._rows = np.append(unique, np.uint64(0)), np.append(order[first], -1)
        self._encoded = ~np.append(failed, True)  # by row

    def __reduce__(self) -> Any:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Return the number of images that have features."""
        return int(self._encoded[self._rows].sum())

    @property
    def unreadable(self) -> dict[str, str]:
        """The reasons, by name, for images that could not be read when the store was built."""
        rows = self._rows[:-1]
        failed = self._table.select(["name", "error"]).take(rows[~self._encoded[rows]])
        return {restore_name(row["name"]): row["error"] for row in failed.to_pylist()}

    def read(self, name: str) -> torch.Tensor:
        """Read the features of an image: (N, d_v), of dtype float32 if stored as such, else bfloat16.

        Raises:
            UnreadableImageError: The image could not be read when the store was built.
            UserError: The image is not in the store.
        """
        row = int(self._find([pa.array([store_name(name)])])[0])
        if row < 0:
            raise UserError(f"{self.folder} has no features of {name!r}")
        if not self._encoded[row]:
            raise UnreadableImageError(self._table["error"][row].as_py())
        cell = self._features[row].as_buffer()
        # A copy: sending a view to another process would send the whole mapped file.
        return self.spec.unpack(torch.from_numpy(np.frombuffer(cell, np.uint8).copy()))

    def blank(self) -> torch.Tensor:
        """Return zeros with the shape and dtype of the result of `read`."""
        return self.spec.unpack(torch.zeros(self.spec.num_bytes, dtype=torch.uint8))

    def _find(self, names: Iterable[pa.Array]) -> np.ndarray:
        """Return the row of each name, -1 if it is not in the store."""
        texts = (name.encode() for chunk in names for name in chunk.to_pylist())
        keys = np.fromiter(map(hash_bytes, texts), np.uint64)
        places = np.searchsorted(self._keys[:-1], keys)
        return np.where(self._keys[places] == keys, self._rows[places], -1)

    def fingerprint(self, images: CaptionedImages) -> str:
        """Return a digest of the contents of images and of how features were computed, without paths."""
        rows = self._find(images.column("name").chunks)
        digest = hashlib.sha256(json.dumps(self.spec.computation, sort_keys=True).encode())
        for name in ("key", "digest", "num_bytes"):
            digest.update(self._table[name].to_numpy()[rows].tobytes())
        return digest.hexdigest()[:16]

    def require(self, images: CaptionedImages, complete: bool = True) -> np.ndarray:
        """Return whether each image has features.

        Image files may be missing, and images may have been unreadable during the build.

        Raises:
            UserError: Images have changed since the build; or are not in the store, if it must be complete.
        """
        rows = self._find(images.column("name").chunks)
        if complete and len(missing := np.flatnonzero(rows < 0)):
            names = [repr(images[int(i)].name) for i in missing[:4]]
            raise UserError(
                f"{self.folder} has no features of {len(missing):,} of the {len(images):,} images "
                f"({first_names(names)}): run `ituning features build` with this dataset and "
                f"--output_dir {self.folder}, to add them"
            )
        encoded, changed = self._encoded[rows], []
        compared = np.flatnonzero(encoded)
        compared = compared[:: len(compared) // _COMPARED_SIZES + 1].tolist()
        to_read = {*compared[:: len(compared) // _COMPARED_CONTENTS + 1]}
        for i in compared:
            image = images[i]
            version = tuple(self._table[name][rows[i]].as_py() for name in ("num_bytes", "digest"))
            with suppress(OSError):
                if image.num_bytes != version[0] or (i in to_read and image_version(image) != version):
                    changed.append(image.name)
        if changed:
            raise UserError(
                f"{len(changed):,} of {len(compared):,} compared images differ from those in {self.folder} "
                f"({first_names(changed)}): build a new store in another folder, or remove this one first"
            )
        return encoded

    def require_fits(self, config: ITuningConfig, processor: dict[str, Any], *precision: str) -> None:
        """Raise a UserError if these arguments of `FeatureSpec.of` give other features."""
        precision = precision or (self.spec.storage, self.spec.mixed_precision)
        wanted = FeatureSpec.of(config, processor, *precision).computation
        pairs = ((name, own, wanted.get(name)) for name, own in self.spec.computation.items())
        if differences := [f"{name} {own!r}, not {value!r}" for name, own, value in pairs if own != value]:
            raise UserError(
                f"the features in {self.folder} were computed with other settings: {'; '.join(differences)}. "
                "Use the store's settings and encoder, or `ituning features build` with another --output_dir"
            )


def _open_shard(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_batches([pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)], schema)
    except (OSError, ValueError) as error:  # those of Arrow are subclasses
        problem = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged ({problem}): remove it, then run the command that built the store again"
        ) from error
