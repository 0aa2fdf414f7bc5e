"""Encoder families: all code that is specific to a vision encoder architecture.

To support another architecture, add a subclass of [`EncoderFamily`] and an entry in `_FAMILIES`. No other
file depends on the architecture.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .configuration_ituning import CaptionerError


class EncoderFamily:
    """What the captioner needs to know about a vision encoder architecture."""

    model_type: str  # as in Transformers' configurations
    model_class: type[PreTrainedModel]
    # Always the PIL class: torchvision resizes slightly differently, and a captioner must not depend on which
    # packages are installed.
    image_processor_class: Any
    has_class_token: bool  # whether the first token is a class token
    architecture: tuple[str, ...]  # configuration fields that change the output of given weights
    weight_prefix: str  # prefix of the encoder's weight names in some checkpoints
    first_weight: str  # a weight that every checkpoint has, without the prefix
    not_weights: re.Pattern[str]  # buffers, which only some checkpoints contain

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load the encoder with the model class's `from_pretrained`."""
        return self.model_class.from_pretrained(name, **kwargs)

    def num_tokens(self, config: Any) -> int:
        """Return N, the number of tokens of one image, including the class token."""
        return (config.image_size // config.patch_size) ** 2 + int(self.has_class_token)

    def image_processor(self, image_size: int) -> Any:
        """Return the default image processor for an encoder of this image size."""
        return self.image_processor_class(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        )

    @torch.no_grad()
    def encode(self, model: Any, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """Encode images without recording gradients.

        `pixel_values` has shape (num_images, num_channels, image_size, image_size). Returns the hidden state
        of `layer`, of shape (num_images, N, d_v); see `vision_feature_layer` of [`ITuningConfig`].
        """
        config = model.config
        image_shape = (config.num_channels, config.image_size, config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != image_shape or pixel_values.shape[0] == 0:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (num_images, "
                f"{', '.join(map(str, image_shape))}): prepare images with the captioner's processor."
            )
        if layer == -1:
            return model(pixel_values).last_hidden_state
        return model(pixel_values, output_hidden_states=True).hidden_states[layer]


class _CLIPVisionModel(CLIPVisionModel):
    """Loads from a full CLIP without reporting its other weights as unexpected."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$"]


class CLIPFamily(EncoderFamily):
    """The vision transformer of CLIP, saved alone or as part of a full CLIP."""

    model_type = "clip_vision_model"
    model_class = CLIPVisionModel
    image_processor_class = CLIPImageProcessorPil
    has_class_token = True
    architecture = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size")
    weight_prefix = "vision_model."
    first_weight = "embeddings.patch_embedding.weight"
    not_weights = re.compile(r"(^|\.)position_ids$")

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load the encoder; from a full CLIP, its vision part."""
        # Transformers strips this prefix only for its own classes, not for subclasses.
        return _CLIPVisionModel.from_pretrained(name, key_mapping={r"^vision_model\.": ""}, **kwargs)


_FAMILIES = {family.model_type: family for family in (CLIPFamily(),)}


def encoder_family(config: Any) -> EncoderFamily:
    """Return the family of a vision encoder's configuration, or raise `CaptionerError`."""
    if (family := _FAMILIES.get(config.model_type)) is None:
        raise CaptionerError(
            f"The vision encoder's model_type is {config.model_type!r}, expected one of {sorted(_FAMILIES)}."
        )
    return family


def pil_image_processor(image_processor: Any) -> Any:
    """Return the PIL variant of an image processor that Transformers loaded for torchvision."""
    for family in _FAMILIES.values():
        if f"{type(image_processor).__name__}Pil" == family.image_processor_class.__name__:
            return family.image_processor_class.from_dict(image_processor.to_dict())
    return image_processor


class UnloadedVisionModel(nn.Module):
    """A placeholder for a vision encoder that is not loaded: a configuration without weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: there is no encoder."""
        raise ValueError("The vision encoder is not loaded: pass visual_features instead of pixel_values.")
