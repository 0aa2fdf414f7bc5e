"""The axes along which the cost of generation grows."""

from __future__ import annotations

from dataclasses import replace

from .axes import BATCH, DECODER, IMAGE_TOKENS, Axis
from .captions import MOST_TOKENS
from .generation_ways import ENCODER_DECODER, FEATURES, FLOOR, PEFT, PICTURES

GROWING_WAYS = (FLOOR, FEATURES, PICTURES, PEFT, ENCODER_DECODER)
AXES = {
    "beams": Axis("beams", (1, 2, 3, 5, 7, 10), lambda settings, value: replace(settings, num_beams=value)),
    "new_tokens": Axis(
        "new tokens",
        (5, 10, 20, 40),
        lambda settings, value: replace(settings, new_tokens=value),
        most=MOST_TOKENS,
    ),
    "batch": BATCH,
    "image_tokens": IMAGE_TOKENS,
    "decoder": DECODER,
}
