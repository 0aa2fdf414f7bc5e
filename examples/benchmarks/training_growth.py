"""The axes along which the cost of a training step grows."""

from __future__ import annotations

from dataclasses import replace

from .axes import BATCH, DECODER, IMAGE_TOKENS, Axis
from .captions import MOST_TOKENS
from .peers import CROSS_ATTENTION
from .training_ways import FLOOR, PICTURES, STORED

GROWING_WAYS = (FLOOR, STORED, PICTURES, CROSS_ATTENTION)
AXES = {
    "batch": replace(BATCH, label="pictures of a step"),
    "captions": Axis(
        "captions of a picture",
        (1, 2, 3, 5, 7, 10),
        lambda settings, value: replace(settings, captions_per_image=value),
    ),
    "length": Axis(
        "tokens of a caption",
        (4, 8, 12, 16, 24, 32),
        lambda settings, value: replace(settings, length=value, width=None),
        most=MOST_TOKENS,
    ),
    "image_tokens": IMAGE_TOKENS,
    "decoder": DECODER,
}
