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


def frozen_backbones(config: ITuningConfig) -> tuple[Any, Any]:
    """Return a frozen vision encoder and a frozen GPT-2, with random weights.

    Callers with equal backbones get modules of their own, which they may change, over the same weights: a
    dozen ways to train would not fit into memory side by side otherwise.
    """
    vision, text = _build(config.vision_config.to_json_string(), config.text_config.to_json_string())
    return over_the_same_weights(vision), over_the_same_weights(text)


@functools.lru_cache(maxsize=1)
def _build(vision: str, text: str) -> tuple[nn.Module, nn.Module]:
    encoder: Any = CLIPVisionModel(CLIPVisionConfig(**json.loads(vision)))
    decoder: Any = GPT2LMHeadModel(GPT2Config(**json.loads(text)))
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


def over_the_same_weights(module: _Module) -> _Module:
    """Copy a module, but not its parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def hold_frozen_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters that are not trained, in place; those that are stay in fp32."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
