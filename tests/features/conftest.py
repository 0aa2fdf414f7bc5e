"""Images, a small vision encoder, and stores that are built in a fraction of a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ituning_hf.data.columns import CaptionedImages
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.features.arguments import BuildArguments
from ituning_hf.features.build import build_features
from ituning_hf.features.store import FeatureStore

Build = Callable[..., int]
Records = CaptionedImages


def save_noise(path: Path, seed: int) -> None:
    """Save an image of noise as a bitmap; all have the same number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (41, 37, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An image folder with 11 training images and 3 validation images, with the same file names."""
    folder = tmp_path / "photos"
    for split, count in (("train", 11), ("val", 3)):
        for i in range(count):
            save_noise(folder / split / f"{i}.bmp", seed=100 * count + i)
        lines = [json.dumps({"file_name": f"{i}.bmp", "captions": ["a dog"]}) for i in range(count)]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def train(photos: Path) -> Records:
    return load_captioned_images(photos, "train")


@pytest.fixture
def val(photos: Path) -> Records:
    return load_captioned_images(photos, "val")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The store's folder."""
    return tmp_path / "store"


@pytest.fixture
def build(backbones: dict[str, Path], folder: Path) -> Build:
    """Returns a function that builds the store with shards of 5 images in batches of 3."""

    def run(records: Records, into: Path = folder, **options: Any) -> int:
        rank = options.pop("rank", None)
        settings = {"batch_size": 3, "shard_size": 5, "device": "cpu"} | options
        settings = {"vision_model": backbones["vision"], "dataloader_num_workers": 0} | settings
        paths = {"vision_model": str(settings.pop("vision_model")), "output_dir": str(into)}
        return build_features(records, BuildArguments(**paths, **settings), rank)

    return run


@pytest.fixture
def store(build: Build, train: Records, folder: Path) -> FeatureStore:
    """The store of the training images."""
    build(train)
    return FeatureStore(folder)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("features-*.arrow"))
