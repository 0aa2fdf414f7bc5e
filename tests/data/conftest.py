"""What the data tests share: a processor with countable tokens, and real photographs if at hand."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

BEGIN, END, PAD = 1, 2, 0


class WordProcessor:
    """One token per word, numbered by its length plus 10, so that expectations can be read."""

    def __init__(self) -> None:
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
        )
        self.tokenizer = SimpleNamespace(bos_token_id=BEGIN, pad_token_id=PAD)
        self.largest_batch = 0

    def encode_captions(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        self.largest_batch = max(self.largest_batch, len(captions))
        words = [[10 + len(word) for word in caption.split()] for caption in captions]
        return [[BEGIN, *ids[: max_length - 2], END] for ids in words]


@pytest.fixture
def word_processor() -> WordProcessor:
    return WordProcessor()


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Karpathy file below tmp_path."""

    def write(entries: list[Any], name: str = "dataset.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"images": entries, "dataset": "toy"}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keeps what `datasets` converts below tmp_path, and its progress bars away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield tmp_path / "cache"
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def flickr8k_mini() -> Path:
    """The folder of 875 Flickr8k photographs beside the checkout; they may not be redistributed."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k-mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    return folder


def save_image(path: Path, colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 34), colour).save(path)
    return path
