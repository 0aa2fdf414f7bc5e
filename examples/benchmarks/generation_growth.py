"""The axes along which the cost of generation grows; three of them are those of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .generation_ways import ENCODER_DECODER, FEATURES, FLOOR, PEFT, PICTURES, CaptionSettings
from .training_growth import AXES as TRAINING_AXES
from .training_growth import Axis

MAIN_WAYS = (FLOOR, FEATURES, PICTURES, PEFT, ENCODER_DECODER)


def _with_beams(settings: Any, value: int) -> Any:
    return replace(settings, num_beams=value)


def _with_tokens(settings: Any, value: int) -> Any:
    return replace(settings, new_tokens=value)


AXES = {
    "beams": Axis("beams", (1, 2, 3, 5, 7, 10), _with_beams),
    "new_tokens": Axis("new tokens", (5, 10, 20, 40), _with_tokens),
    "batch": replace(TRAINING_AXES["batch"], label="pictures at once"),
    "image_tokens": TRAINING_AXES["image_tokens"],
    "decoder": TRAINING_AXES["decoder"],
}


def settings_at(axis: str, value: Any, settings: CaptionSettings) -> CaptionSettings:
    """Return settings with an axis's value in them."""
    change: Any = AXES[axis].change
    return change(settings, value)
