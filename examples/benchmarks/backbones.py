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


def frozen_vision_model(config: ITuningConfig) -> Any:
    """Return a captioner's frozen vision encoder, with random weights.

    Callers with equal encoders get modules of their own, which they may change, over the same weights: a
    dozen ways to train would not fit into memory side by side otherwise.
    """
    return over_the_same_weights(_build_vision(config.vision_config.to_json_string()))


def frozen_text_model(config: ITuningConfig, dtype: torch.dtype = torch.float32) -> Any:
    """Return a captioner's frozen GPT-2, with random weights shared in the same way by those of one dtype."""
    return over_the_same_weights(_build_text(config.text_config.to_json_string(), dtype))


def frozen_backbones(config: ITuningConfig) -> tuple[Any, Any]:
    """Return both."""
    return frozen_vision_model(config), frozen_text_model(config)


@functools.lru_cache(maxsize=1)
def _build_vision(config: str) -> Any:
    model: Any = CLIPVisionModel(CLIPVisionConfig(**json.loads(config)))
    return model.eval().requires_grad_(False)


@functools.lru_cache(maxsize=2)  # the ways' own dtype, and bf16 beside it
def _build_text(config: str, dtype: torch.dtype) -> Any:
    model: Any = GPT2LMHeadModel(GPT2Config(**json.loads(config)))
    return model.to(dtype).eval().requires_grad_(False)


def over_the_same_weights(module: _Module) -> _Module:
    """Copy a module, but not its parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def hold_frozen_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters that are not trained, in place; those that are stay in fp32."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
