"""The path of the image: into the decoder, projected once, to every adapted layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..captioner.adapter_ituning import check_rows, check_visual_features
from ..captioner.decoders_ituning import DECODER_FAMILIES
from ..utils.errors import UserError
from .layer import NamedKeyValues, active_adapters

_DECODER_CLASSES = tuple(family.decoder_class for family in DECODER_FAMILIES.values())


def find_decoders(model: nn.Module) -> list[Any]:
    """Return the decoders in a model, which may be one itself."""
    return [module for module in model.modules() if isinstance(module, _DECODER_CLASSES)]


def project_image(model: nn.Module, image: torch.Tensor) -> NamedKeyValues:
    """Project the visual memory to the keys and values of every active adapter.

    Args:
        model: The model with adapters.
        image: Shape (num_images, N, d_v).

    Returns:
        For each layer and each of its active adapters, keys and values of shape (num_images, h, N, r / h).
    """
    projected: NamedKeyValues = {}
    for index, adapters in active_adapters(model).items():
        for adapter in adapters.values():
            check_visual_features(image, adapter.k_proj.in_features, "encoder_hidden_states")
        projected[index] = {name: adapter.project_visual(image) for name, adapter in adapters.items()}
    return projected


def take_image(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Replace the image by its keys and values, as a forward pre-hook of the decoder.

    The image comes as `encoder_hidden_states`, a keyword that `generate` accepts and plain layers refuse. The
    hook is a function without state: copies of a model are independent, and threads can share a model.
    """
    image = kwargs.pop("encoder_hidden_states", None)
    mask = kwargs.pop("encoder_attention_mask", None)
    if not active_adapters(decoder):  # disabled or deleted: the frozen language model ignores the image
        return args, kwargs
    if image is None:
        raise UserError(
            "encoder_hidden_states is None: give the image's features, of shape (num_images, tokens, "
            "vision_hidden_size), or run the language model alone inside model.disable_adapter()."
        )
    if mask is not None:
        raise UserError("encoder_attention_mask is not supported: the adapters read all tokens of an image.")
    # `generate` passes a plain dictionary of keys and values; an encoder's output is a dictionary, too.
    key_values = image if type(image) is dict else project_image(decoder, image)
    key, _ = next(iter(next(iter(key_values.values())).values()))
    text = kwargs.get("input_ids")
    text = kwargs.get("inputs_embeds") if text is None else text
    check_rows((args[0] if text is None else text).shape[0], key.shape[0])
    return args, kwargs | {"visual_key_values": key_values}


__all__ = ["find_decoders", "project_image", "take_image"]
