"""The image's way to the adapters: in at the decoder, projected once, on to every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from ..captioner.adapter_ituning import ITuningAdapter, check_rows, check_visual_features
from .layer import ITuningLayer, NamedKeyValues


def find_decoders(model: nn.Module) -> list[GPT2Model]:
    """Return the GPT-2 decoders inside a model, which may be one itself."""
    return [module for module in model.modules() if isinstance(module, GPT2Model)]


def find_layers(model: nn.Module) -> list[ITuningLayer]:
    """Return the layers inside a model that hold adapters, or held some."""
    return [module for module in model.modules() if isinstance(module, ITuningLayer)]


def active_adapters(model: nn.Module) -> dict[int, dict[str, ITuningAdapter]]:
    """Return the adapters that take part in a forward pass, by layer and name; empty if there are none."""
    # Two loops and no assignment inside: torch.compile would break its graph at one.
    adapters = {layer.layer_idx: layer.active() for layer in find_layers(model)}
    return {index: active for index, active in adapters.items() if active}


def project_image(model: nn.Module, image: torch.Tensor) -> NamedKeyValues:
    """Project the visual memory to the keys and values of every active adapter.

    Args:
        model: Holds the adapters.
        image: Shape (num_images, N, d_v).

    Returns:
        For each layer and each of its active adapters, both of shape (num_images, h, N, r / h).

    Raises:
        ValueError: for an image of another shape than the adapters read.
    """
    projected: NamedKeyValues = {}
    for index, adapters in active_adapters(model).items():
        for adapter in adapters.values():
            check_visual_features(image, adapter.k_proj.in_features, "encoder_hidden_states")
        projected[index] = {name: adapter.project_visual(image) for name, adapter in adapters.items()}
    return projected


def take_image(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Hand the image on to the layers, as a forward pre-hook of the decoder.

    GPT-2's own keyword for it is `encoder_hidden_states`, which its plain blocks refuse. A function of the
    module, so that it holds nothing: copies of a model stay apart, and threads may share one.

    Raises:
        ValueError: if there is no image, it has another shape, or the rows cannot be divided among images.
    """
    image = kwargs.pop("encoder_hidden_states", None)
    mask = kwargs.pop("encoder_attention_mask", None)
    if not active_adapters(decoder):  # disabled or deleted: the frozen language model, which sees none
        return args, kwargs
    if image is None:
        raise ValueError(
            "encoder_hidden_states is None: give the image's features, of shape (num_images, tokens, "
            "vision_hidden_size), or run the language model alone inside model.disable_adapter()."
        )
    if mask is not None:
        raise ValueError(
            "encoder_attention_mask is given, and all tokens of an image are read: leave it out."
        )
    # A plain dictionary is `generate`'s; an encoder's whole output is a dictionary too.
    key_values = image if type(image) is dict else project_image(decoder, image)
    key, _ = next(iter(next(iter(key_values.values())).values()))
    text = kwargs.get("input_ids")
    text = kwargs.get("inputs_embeds") if text is None else text
    check_rows((args[0] if text is None else text).shape[0], key.shape[0])
    return args, kwargs | {"visual_key_values": key_values}


__all__ = ["active_adapters", "find_decoders", "find_layers", "project_image", "take_image"]
