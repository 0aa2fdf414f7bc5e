"""Load several captioners by name; those with the same frozen models share them in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..captioner.backbones_ituning import recorded_backbone
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..inference.loading import load_captioner, read_config
from ..utils.errors import UserError


@dataclass(frozen=True)
class Captioner:
    """A loaded captioner and the name by which requests choose it."""

    name: str
    model: ITuningForCaptioning
    processor: ITuningProcessor


def load_captioners(
    sources: Sequence[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
) -> dict[str, Captioner]:
    """Load saved captioners. Each frozen model is in memory once, even if several captioners use it.

    Args:
        sources: A folder or Hub id for each, or NAME=MODEL. The default name is the Hub id or the folder's
            name; for a folder named "best" or "last", as training writes them, that of the folder above it.
        device: As for `load_captioner`, as are the following arguments.
        dtype: The precision of all weights.
        quantization: "int8", or None.

    Returns:
        The captioners by name, in the order of `sources`.

    Raises:
        UserError: Two captioners have the same name, or one cannot be used.
        OSError: A captioner or a frozen model cannot be found.
        ValueError: A file is damaged, or a frozen model is not the one used in training.
    """
    captioners: dict[str, Captioner] = {}
    backbones: dict[tuple[str, str], Any] = {}
    for name, model_name_or_path in name_captioners(sources).items():
        keys = _backbone_keys(model_name_or_path)
        vision_model, text_model = (backbones.get(keys[part]) for part in ("vision", "text"))
        model, processor = load_captioner(
            model_name_or_path,
            device=device,
            dtype=dtype,
            quantization=quantization,
            vision_model=vision_model,
            text_model=text_model,
        )
        for part, key in keys.items():
            backbones.setdefault(key, getattr(model, f"{part}_model"))
        captioners[name] = Captioner(name, model, processor)
    return captioners


def name_captioners(sources: Sequence[str]) -> dict[str, str]:
    """Return the folder or Hub id of each captioner by its name; `sources` is as for `load_captioners`.

    Raises:
        UserError: Two have the same name.
    """
    named: dict[str, str] = {}
    for source in sources:
        name, equals, model = source.partition("=")
        if not equals or os.path.isdir(source):  # a folder's name may contain "="
            name, model = _default_name(source), source
        if name in named:
            raise UserError(
                f"{named[name]!r} and {model!r} have the same name, {name!r}: "
                "choose different names with NAME=MODEL"
            )
        named[name] = model
    return named


def _default_name(model: str) -> str:
    if not os.path.isdir(model):
        return model
    path = Path(os.path.abspath(model))
    return path.parent.name if path.name in ("best", "last") else path.name


def _backbone_keys(model_name_or_path: str) -> dict[str, tuple[str, str]]:
    """Return the fingerprint and the configuration of each frozen model of a captioner."""
    read_config(model_name_or_path)  # its errors name what is there instead of a captioner
    config = ITuningConfig.from_pretrained(model_name_or_path)
    return {
        part: (str(recorded_backbone(config, part)[2]), getattr(config, f"{part}_config").to_json_string())
        for part in ("vision", "text")
    }
