"""The paper's sizes, and a small one to see that a benchmark runs."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig

_VIT_B_16: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_SMALL_VIT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_SMALL_GPT2: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 1000,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# The vision encoder and the decoder; the adapters are r = d / 2 wide, which is ITuningConfig's default.
_BACKBONES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (_SMALL_VIT, _SMALL_GPT2),
    "base": (_VIT_B_16, {}),
    "medium": (_VIT_B_16, {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "large": (_VIT_B_16, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
}
SIZES = tuple(_BACKBONES)


def backbone_configs(
    size: str, image_size: int | None = None, patch_size: int | None = None
) -> tuple[CLIPVisionConfig, GPT2Config]:
    """Return new configurations of the two frozen models.

    Args:
        size: One of `SIZES`.
        image_size: Pixels of a side, in place of the size's own.
        patch_size: Pixels of a patch's side, in place of the size's own.
    """
    vision, text = _BACKBONES[size]
    image = {
        "image_size": image_size or vision["image_size"],
        "patch_size": patch_size or vision["patch_size"],
    }
    return CLIPVisionConfig(**vision | image), GPT2Config(**text)


def captioner_config(
    size: str, image_size: int | None = None, patch_size: int | None = None, **adapter_options: Any
) -> ITuningConfig:
    """Return a captioner's configuration over the backbones of a size.

    Args:
        size: One of `SIZES`.
        image_size: As in `backbone_configs`.
        patch_size: As in `backbone_configs`.
        **adapter_options: Options of `ITuningConfig`, such as `adapter_layers`.
    """
    vision, text = backbone_configs(size, image_size, patch_size)
    return ITuningConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), **adapter_options)


def num_image_tokens(vision: CLIPVisionConfig) -> int:
    """Return how many tokens an image has, the class token included."""
    return (vision.image_size // vision.patch_size) ** 2 + 1
