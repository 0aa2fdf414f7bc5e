"""The methods of the study by name, built over the frozen language model of an untrained captioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.decoders_ituning import decoder_family

from . import changes
from .rivals.clipcap import ClipCap
from .rivals.cross_attention import CrossAttention
from .rivals.flamingo import Flamingo
from .rivals.image_tokens import ImageTokens


def build(method: str, captioner: ITuningForCaptioning) -> nn.Module:
    """Build a method.

    Args:
        method: The name of a rival, with as many trained parameters as the captioner or as near as its
            formula permits; or of a variant of I-Tuning.
        captioner: An untrained captioner. Its language model is shared.
    """
    if method in RIVALS:
        trained = sum(p.numel() for p in captioner.parameters() if p.requires_grad)
        return RIVALS[method](captioner.text_model, captioner.config.vision_config.hidden_size, trained)
    return VARIANTS[method](captioner)


def upper_half(captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """Return I-Tuning in the upper half of the layers, with half the parameters."""
    decoder = captioner.config.text_config
    upper = [*range(decoder.num_hidden_layers // 2, decoder.num_hidden_layers)]
    config = ITuningConfig.from_dict(captioner.config.to_dict(), adapter_layers=upper)
    text_model = decoder_family(decoder).without_adapters(captioner.text_model)
    return ITuningForCaptioning(config, captioner.vision_model, text_model)


RIVALS: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "clipcap": ClipCap,
    "image_tokens": ImageTokens,
    "flamingo": Flamingo,
    "cross_attention": CrossAttention,
}
VARIANTS: dict[str, Callable[[ITuningForCaptioning], ITuningForCaptioning]] = {
    "ituning": lambda captioner: captioner,
    "ituning_upper_half": upper_half,
    "gate": changes.gate,
    "linear_init": changes.linear_init,
}
