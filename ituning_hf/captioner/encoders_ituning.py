"""Encoder families: all code that is specific to a vision encoder architecture.

To support another architecture, add a subclass of [`EncoderFamily`] with the decorator `@supported`. No other
file depends on the architecture; see docs/families.md.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from transformers import (
    CLIPVisionModel,
    DeiTModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    SiglipVisionModel,
    ViTModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from .configuration_ituning import CaptionerError


class EncoderFamily:
    """What the captioner needs to know about a vision encoder architecture.

    The image's tokens are those of its patches, row by row, after the prefix tokens: a class token, a
    distillation token, registers.
    """

    model_type: str  # as in Transformers' configurations
    model_class: type[PreTrainedModel]
    model_options: dict[str, Any] = {}  # arguments of the class, which leave out unused parts
    image_processor_class: Any  # of a checkpoint that names none; the PIL class: see `pil_image_processor`
    # Whether `last_hidden_state` is normalized after the last layer, whose own output is `hidden_states[-1]`.
    has_final_norm = True
    architecture: tuple[str, ...]  # configuration fields that change the output of given weights
    weight_prefix: str  # prefix of the encoder's weight names in some checkpoints
    first_weight: str  # a weight that every checkpoint has, without the prefix
    not_weights: re.Pattern[str]  # tensors that only some checkpoints contain, and the captioner does not use

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load the encoder; from a checkpoint with more parts, such as a text encoder or a head, only it.

        The arguments and the result are those of the model class's `from_pretrained`.
        """
        # Loaded by a subclass that does not report the other parts as unexpected. With another module name,
        # Transformers would take it for custom code, and not convert the names of weights.
        quiet = {"_keys_to_ignore_on_load_unexpected": [r""], "__module__": self.model_class.__module__}
        quiet_class: Any = type(self.model_class.__name__, (self.model_class,), quiet)
        loaded = quiet_class.from_pretrained(name, **self.model_options, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with its loading information
        model.__class__ = self.model_class
        return loaded

    def as_stored(self, model: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights in memory under their names in a checkpoint."""
        # Transformers has renamed many weights. Imported here: not part of its documented interface.
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(model, state_dict)

    def num_prefix_tokens(self, config: Any) -> int:
        """Return the number of tokens before those of the patches; the first, if any, is a class token."""
        return 1

    def num_tokens(self, config: Any, height: int, width: int) -> int:
        """Return N, the number of tokens of one image of `height` x `width` pixels."""
        patches = (height // config.patch_size) * (width // config.patch_size)
        return self.num_prefix_tokens(config) + patches

    def image_processor(self, config: Any) -> Any:
        """Return the default image processor for an encoder."""
        size = {"height": config.image_size, "width": config.image_size}
        return self.image_processor_class(size=size)

    def check_pixels(self, config: Any, pixel_values: torch.Tensor) -> None:
        """Raise `ValueError` if the encoder does not accept images of this shape."""
        expected = (config.num_channels, config.image_size, config.image_size)
        self._check_shape(pixel_values, pixel_values.shape[1:] == expected, ", ".join(map(str, expected)))

    @staticmethod
    def _check_shape(pixel_values: torch.Tensor, is_valid: bool, expected: str) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[0] == 0 or not is_valid:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (num_images, {expected}): "
                "prepare images with the captioner's processor."
            )

    @torch.no_grad()
    def encode(self, model: Any, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """Encode images without recording gradients.

        `pixel_values` has shape (num_images, num_channels, height, width). Returns the hidden state of
        `layer`, of shape (num_images, N, d_v); see `vision_feature_layer` of [`ITuningConfig`].
        """
        self.check_pixels(model.config, pixel_values)
        if layer == -1:
            return model(pixel_values).last_hidden_state
        return model(pixel_values, output_hidden_states=True).hidden_states[layer]


_FAMILIES: dict[str, EncoderFamily] = {}
_FamilyClass = TypeVar("_FamilyClass", bound=type[EncoderFamily])


def supported(family_class: _FamilyClass) -> _FamilyClass:
    """Class decorator: add a family."""
    _FAMILIES[family_class.model_type] = family_class()
    return family_class


@supported
class CLIPFamily(EncoderFamily):
    """The vision transformer of CLIP, saved alone or as part of a full CLIP."""

    model_type = "clip_vision_model"
    model_class = CLIPVisionModel
    image_processor_class = CLIPImageProcessorPil
    has_final_norm = False  # `post_layernorm` is applied to the pooled class token only
    architecture = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size")
    weight_prefix = "vision_model."
    first_weight = "embeddings.patch_embedding.weight"
    not_weights = re.compile(r"(^|\.)position_ids$")

    def image_processor(self, config: Any) -> Any:
        """Return the default image processor, which crops the central square."""
        size = config.image_size
        return self.image_processor_class(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )


@supported
class SiglipFamily(EncoderFamily):
    """The vision transformer of SigLIP, and of SigLIP 2 at a fixed resolution, alone or as part of a pair."""

    model_type = "siglip_vision_model"
    model_class = SiglipVisionModel
    image_processor_class = SiglipImageProcessorPil
    architecture = CLIPFamily.architecture
    weight_prefix = "vision_model."
    first_weight = "embeddings.patch_embedding.weight"
    not_weights = re.compile(r"(^|\.)position_ids$|^head\.")

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load the encoder without its pooling head, whose output is not used."""
        return super().load(name, vision_use_head=False, **kwargs)

    def num_prefix_tokens(self, config: Any) -> int:
        """Return 0: there is no class token."""
        return 0


@supported
class ViTFamily(EncoderFamily):
    """The Vision Transformer (`ViTModel`), also as part of an image classifier."""

    model_type = "vit"
    model_class = ViTModel
    model_options = {"add_pooling_layer": False}
    image_processor_class = ViTImageProcessorPil
    architecture = CLIPFamily.architecture
    weight_prefix = "vit."
    first_weight = "embeddings.cls_token"
    not_weights = re.compile(r"^pooler\.|^embeddings\.mask_token$")


@supported
class DeiTFamily(ViTFamily):
    """The distilled DeiT (`DeiTModel`), also as part of an image classifier. Other DeiTs are ViTs."""

    model_type = "deit"
    model_class = DeiTModel
    image_processor_class = DeiTImageProcessorPil
    weight_prefix = "deit."

    def num_prefix_tokens(self, config: Any) -> int:
        """Return 2: a class token and a distillation token."""
        return 2

    def image_processor(self, config: Any) -> Any:
        """Return the default image processor, which resizes to 8/7 of the size and crops the center."""
        size, larger = config.image_size, round(config.image_size * 8 / 7)
        return self.image_processor_class(
            size={"height": larger, "width": larger}, crop_size={"height": size, "width": size}
        )


@supported
class Dinov2Family(EncoderFamily):
    """DINOv2 (`Dinov2Model`). It interpolates its position embeddings to images of any size."""

    model_type = "dinov2"
    model_class = Dinov2Model
    image_processor_class = BitImageProcessorPil
    architecture = CLIPFamily.architecture
    weight_prefix = "dinov2."
    first_weight = "embeddings.cls_token"
    not_weights = re.compile(r"^embeddings\.mask_token$")

    def image_processor(self, config: Any) -> Any:
        """Return the default image processor: that of the published models, 16 x 16 patches."""
        size = 16 * config.patch_size
        return self.image_processor_class(
            size={"shortest_edge": round(size * 8 / 7)},
            crop_size={"height": size, "width": size},
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )

    def check_pixels(self, config: Any, pixel_values: torch.Tensor) -> None:
        """Raise `ValueError` unless the sizes of the images are multiples of the patch size."""
        channels, patch = config.num_channels, config.patch_size
        _, *shape = pixel_values.shape
        is_valid = shape[:1] == [channels] and all(side >= patch and side % patch == 0 for side in shape[1:])
        expected = f"{channels}, height, width) with multiples of {patch} pixels"
        self._check_shape(pixel_values, is_valid, expected)


@supported
class Dinov2WithRegistersFamily(Dinov2Family):
    """DINOv2 with register tokens (`Dinov2WithRegistersModel`)."""

    model_type = "dinov2_with_registers"
    model_class = Dinov2WithRegistersModel
    weight_prefix = "dinov2_with_registers."

    def num_prefix_tokens(self, config: Any) -> int:
        """Return the number of registers and the class token."""
        return 1 + config.num_register_tokens


def encoder_family(config: Any) -> EncoderFamily:
    """Return the family of a vision encoder's configuration, or raise `CaptionerError`."""
    if (family := _FAMILIES.get(config.model_type)) is None:
        raise CaptionerError(
            f"The vision encoder's model_type is {config.model_type!r}, expected one of {sorted(_FAMILIES)}. "
            "See docs/families.md to add another."
        )
    return family


class UnloadedVisionModel(nn.Module):
    """A placeholder for a vision encoder that is not loaded: a configuration without weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: there is no encoder."""
        raise ValueError("The vision encoder is not loaded: pass visual_features instead of pixel_values.")
