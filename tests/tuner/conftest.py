"""One small language model, by default a GPT-2."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import OTHER_FAMILIES
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def loaded(
    request: pytest.FixtureRequest, backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The language model as loaded from its folder; tests choose its family indirectly."""
    folder = backbones["text"]
    if (family := getattr(request, "param", "gpt2")) != "gpt2":
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(7)
        OTHER_FAMILIES[family]().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def stock(loaded: Any) -> Any:
    """The language model without adapters."""
    return copy.deepcopy(loaded)


@pytest.fixture
def text_model(loaded: Any) -> Any:
    """The language model that tests add adapters to."""
    return copy.deepcopy(loaded)


@pytest.fixture
def gpt2(text_model: Any) -> Any:
    return text_model
