"""A processor with predictable tokens, small datasets, and real photographs if available."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image
from small_models import SHARED_DATA
from transformers import CLIPImageProcessorPil

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.loading import load_captioned_images

BEGIN, END, PAD = 1, 2, 0

WriteJson = Callable[..., Path]


class WordProcessor:
    """Tokenizes each word to its length plus 10, so that expected ids are readable."""

    def __init__(self) -> None:
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
        )
        self.tokenizer = SimpleNamespace(bos_token_id=BEGIN, pad_token_id=PAD)

    def encode_captions(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        words = [[10 + len(word) for word in caption.split()] for caption in captions]
        return [[BEGIN, *ids[: max_length - 2], END] for ids in words]


@pytest.fixture
def word_processor() -> WordProcessor:
    return WordProcessor()


@pytest.fixture
def write_json(tmp_path: Path) -> WriteJson:
    """Returns a function that writes a JSON file below tmp_path."""

    def write(content: Any, name: str = "dataset.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the cache of `datasets` below tmp_path, and hides its progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def flickr8k_mini() -> Path:
    """The folder of 875 Flickr8k photographs next to the checkout; they may not be redistributed."""
    folder = SHARED_DATA / "flickr8k-mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    return folder


def save_image(path: Path, colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 34), colour).save(path)
    return path


def load(dataset: str | Path, split: str = "train", **options: Any) -> list[CaptionedImage]:
    """Load a split whose image files need not exist."""
    return list(load_captioned_images(dataset, split, require_images=False, **options))


def captions(dataset: str | Path, split: str = "train", **options: Any) -> dict[str, tuple[str, ...]]:
    """Return the captions of each image of a split by the image's name."""
    return {image.name: image.captions for image in load(dataset, split, **options)}
