"""One small GPT-2."""

import copy
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel


@pytest.fixture(scope="session")
def loaded_gpt2(backbones: dict[str, Path]) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(backbones["text"])


@pytest.fixture
def stock(loaded_gpt2: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The language model without adapters."""
    return copy.deepcopy(loaded_gpt2)


@pytest.fixture
def gpt2(loaded_gpt2: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The language model that tests add adapters to."""
    return copy.deepcopy(loaded_gpt2)
