"""A shard: a file with the features of some hundred images, written atomically."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.columns import CaptionedImage
from ..utils.errors import UserError
from ..utils.files import draft_of, give_ordinary_permissions, put_in_place
from .spec import FeatureSpec

SHARD_PATTERN = "features-*.safetensors"


class ImageVersion(NamedTuple):
    """The size and digest of an image file, to detect a different image with the same name."""

    num_bytes: int
    digest: str


def image_version(record: CaptionedImage) -> ImageVersion:
    """Return the version of an image; it is read."""
    content = record.read()
    return ImageVersion(len(content), hashlib.sha256(content).hexdigest()[:16])


@dataclass
class ShardIndex:
    """The header of a shard."""

    # The version of each encoded image, by name, in the order of the features.
    images: dict[str, ImageVersion] = field(default_factory=dict)
    # The reason for each image that could not be read, by name.
    unreadable: dict[str, str] = field(default_factory=dict)


def pack(features: torch.Tensor, storage: str) -> dict[str, torch.Tensor]:
    """Convert features to the stored data type.

    "int8" uses symmetric quantization with one scale per token: its largest absolute value maps to 127. The
    error is at most half a scale, 1/254 of the largest value, plus rounding to bfloat16 when the features are
    read. The median error relative to a token's norm depends on outliers: 0.7% for the bundled encoder of
    synthetic scenes, 0.8% for a ViT-B/16 with random weights, 2.1% if one value in 768 is 10 times larger
    than the others, and 5.5% if it is 50 times larger, as in some pretrained encoders. bfloat16: 0.2%.

    Values beyond the largest bfloat16, 3.39e38, are clamped unless float32 is stored.

    Args:
        features: Floating-point features of shape (num_images, N, d_v).
        storage: One of `STORAGES`.

    Returns:
        `features` of the same shape and, for "int8", `scales` of shape (num_images, N) in float32.
    """
    if storage == "float32":
        return {"features": features.float()}
    largest = torch.finfo(torch.bfloat16).max  # larger values would be rounded to infinity
    features = features.float().clamp(-largest, largest)
    if storage == "bfloat16":
        return {"features": features.to(torch.bfloat16)}
    scales = features.abs().amax(dim=-1) / 127
    steps = features / scales.masked_fill(scales == 0, 1).unsqueeze(-1)
    return {"features": steps.round().clamp(-127, 127).to(torch.int8), "scales": scales}


def unpack(features: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Convert features that are stored as int8 to bfloat16."""
    return (features * scales.unsqueeze(-1)).to(torch.bfloat16)


def write_shard(folder: Path, index: ShardIndex, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a shard atomically, under the first free number, and return its path.

    Args:
        folder: The store's folder.
        index: The header: the images.
        tensors: The result of `pack` for `index.images`, in the same order.

    Raises:
        OSError: The file cannot be written; no partial file is left.
    """
    paths = (folder / SHARD_PATTERN.replace("*", f"{number:05}") for number in itertools.count())
    path = next(path for path in paths if not path.exists())
    draft = draft_of(path)
    header = json.dumps({"images": list(index.images.items()), "unreadable": index.unreadable})
    try:
        save_file(tensors, draft, metadata={"index": header})
        give_ordinary_permissions(draft)
        put_in_place(path)
    except SafetensorError as error:  # for example if the disk is full
        raise OSError(str(error)) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def read_index(path: Path, spec: FeatureSpec) -> ShardIndex:
    """Read only the header of a shard; raise UserError if it is damaged or does not match `spec`."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["index"])
            images = {name: ImageVersion(*version) for name, version in content["images"]}
            if images:
                shape = file.get_slice("features").get_shape()
                expected = [len(images), spec.num_tokens, spec.hidden_size]
                if shape != expected:
                    raise ValueError(f"features of shape {shape}, expected {expected}")
            return ShardIndex(images, content["unreadable"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, then run the command that built the store again"
        ) from error
