"""Fixtures of all tests, and their isolation from each other."""

import copy
import gc
import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch and transformers are imported, here and in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may use the network
os.environ["OMP_NUM_THREADS"] = "1"  # several threads slow models of this size down

import numpy as np
import properties
import pytest
import torch
from accelerate.state import AcceleratorState
from small_families import SmallFamilies
from small_models import ADAPTER, IMAGE_SIZE, make_captioner, randomize_adapters, save_backbones
from transformers import dynamic_module_utils
from transformers.utils import logging as transformers_logging

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner

pytest_plugins = ["browser"]


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples of property tests before they are imported."""
    properties.load_profile(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests marked `first`, so that parallel workers end at about the same time."""
    properties.add_stress_mark(items)
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """Exclude what is imported from garbage collection, which Trainer starts after each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Start each test with the same random state, and undo what commands set for the whole process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries use it)
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    environment, verbosity = dict(os.environ), transformers_logging.get_verbosity()
    progress_bar, hub_logger = (
        transformers_logging.is_progress_bar_enabled(),
        logging.getLogger("huggingface_hub"),
    )
    propagate = hub_logger.propagate
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.clear()
    os.environ.update(environment)
    transformers_logging.set_verbosity(verbosity)
    if progress_bar:
        transformers_logging.enable_progress_bar()
    hub_logger.propagate = propagate


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small frozen models: "vision", "clip" (with the same vision part) and "text"."""
    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> SmallFamilies:
    """Folders of small models of every family, by the names in `small_families`."""
    return SmallFamilies(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def _new_captioner(backbones: dict[str, Path]) -> ITuningForCaptioning:
    torch.manual_seed(11)
    return ITuningForCaptioning.from_vision_text_pretrained(backbones["vision"], backbones["text"], **ADAPTER)


@pytest.fixture
def new_captioner(_new_captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """A captioner with untrained adapters."""
    return copy.deepcopy(_new_captioner)


@pytest.fixture
def captioner(new_captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """A captioner in evaluation mode whose captions depend on the image."""
    return randomize_adapters(new_captioner)


@pytest.fixture(scope="session")
def processor(backbones: dict[str, Path]) -> ITuningProcessor:
    return ITuningProcessor.from_vision_text_pretrained(backbones["vision"], backbones["text"])


@pytest.fixture(scope="session")
def saved_captioner(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a captioner whose captions depend on the image. Tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("captioner")
    save_captioner(make_captioner(backbones), processor, folder)
    return folder


@pytest.fixture
def remote_class(saved_captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class in a saved captioner's code, as `trust_remote_code=True` imports it without the package."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Another test's cache of remote code may precede this one.
    own_path = [entry for entry in sys.path if not Path(entry, "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", own_path)
    modules = dict(sys.modules)
    for name in [name for name in modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    name = "modeling_ituning.ITuningForCaptioning"
    yield dynamic_module_utils.get_class_from_dynamic_module(name, str(saved_captioner))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
