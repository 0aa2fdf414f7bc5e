"""The frozen backbones that the ways of one run share."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

from ituning_hf import ITuningConfig

_Module = TypeVar("_Module", bound=nn.Module)


def frozen_vision_model(config: ITuningConfig, dtype: torch.dtype = torch.float32) -> Any:
    """Return a captioner's frozen vision encoder, with random weights that are the same in every process.

    Callers with equal encoders of one dtype get modules of their own, which they may change, over the same
    weights: a dozen ways to train would not fit into memory side by side otherwise. To cast or to move one
    is to cast or to move all.
    """
    return over_the_same_weights(_shared_vision(config.vision_config.to_json_string(), dtype))


def frozen_text_model(config: ITuningConfig, dtype: torch.dtype = torch.float32) -> Any:
    """Return a captioner's frozen GPT-2, made and shared in the same way."""
    return over_the_same_weights(_shared_text(config.text_config.to_json_string(), dtype))


def unshared_text_model(config: ITuningConfig) -> Any:
    """Return the same GPT-2 in fp32, for one who replaces its weights: nobody else keeps them in memory."""
    return _frozen(GPT2LMHeadModel, config.text_config)


@functools.lru_cache(maxsize=2)  # the ways' own dtype, and bf16 beside it
def _shared_vision(config: str, dtype: torch.dtype) -> Any:
    return _frozen(CLIPVisionModel, CLIPVisionConfig(**json.loads(config))).to(dtype)


@functools.lru_cache(maxsize=2)
def _shared_text(config: str, dtype: torch.dtype) -> Any:
    return _frozen(GPT2LMHeadModel, GPT2Config(**json.loads(config))).to(dtype)


def _frozen(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval().requires_grad_(False)


def forget_shared() -> None:
    """Let go of the shared weights: who asks next gets new ones, equal but for what was done to these."""
    _shared_vision.cache_clear()
    _shared_text.cache_clear()


def over_the_same_weights(module: _Module) -> _Module:
    """Copy a module, but not its parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def hold_frozen_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters that are not trained, in place; those that are stay in fp32."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
