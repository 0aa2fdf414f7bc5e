"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch and transformers are imported, here and in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask the network
os.environ["OMP_NUM_THREADS"] = "1"  # on models this small, two threads on busy cores take ten times longer

import properties
import pytest
import torch
from accelerate.state import AcceleratorState
from small_models import ADAPTER, IMAGE_SIZE, randomize_adapters, save_backbones

from ituning_hf import ITuningForCaptioning, ITuningProcessor


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples of property tests before they are imported."""
    properties.load_profile(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests marked `first`, so that parallel workers end at about the same time."""
    properties.add_stress_mark(items)
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(autouse=True)
def _fresh_accelerator_state() -> Iterator[None]:
    """Accelerate keeps its state for the lifetime of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small frozen models: "vision", "clip" (with the same vision part) and "text"."""
    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture
def new_captioner(backbones: dict[str, Path]) -> ITuningForCaptioning:
    """A captioner whose adapters were never trained."""
    torch.manual_seed(11)
    return ITuningForCaptioning.from_vision_text_pretrained(backbones["vision"], backbones["text"], **ADAPTER)


@pytest.fixture
def captioner(new_captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """A captioner whose captions depend on the image, in evaluation mode."""
    return randomize_adapters(new_captioner)


@pytest.fixture(scope="session")
def processor(backbones: dict[str, Path]) -> ITuningProcessor:
    return ITuningProcessor.from_vision_text_pretrained(backbones["vision"], backbones["text"])


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
