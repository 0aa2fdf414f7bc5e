"""Random changes of training images, each a pure function of seed, epoch and image index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

_MIN_AREA = 0.7
_MAX_STRETCH = 4 / 3
_JITTER = 0.2


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a part; the image processor resizes it without distortion.

    The aspect ratio is relative to the image's own: a 4:3 part of a panorama would be too small.
    """
    area = rng.uniform(_MIN_AREA, 1)
    widest = min(_MAX_STRETCH, 1 / area)  # beyond it the part would be larger than the image
    stretch = math.exp(rng.uniform(-math.log(widest), math.log(widest)))
    width = math.ceil(image.width * math.sqrt(area * stretch))
    height = math.ceil(image.height * math.sqrt(area / stretch))
    left = int(rng.integers(image.width - width, endpoint=True))
    top = int(rng.integers(image.height - height, endpoint=True))
    return image.crop((left, top, left + width, top + height))


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _change_color(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return image


# Applied in this order. The position numbers the random stream of each.
_CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "flip": _flip,
    "color": _change_color,
}
AUGMENTATIONS = tuple(_CHANGES)


def augment(
    image: Image.Image, augmentation: Sequence[str], seed: int, epoch: int, index: int
) -> Image.Image:
    """Change an image at random, in the same way for the same arguments.

    Args:
        image: Of mode "RGB".
        augmentation: Any of these, in any order:
            "crop" cuts out a part of at least 70% of the area, its aspect ratio 3/4 to 4/3 of the image's;
            "flip" mirrors half of the images, which makes "left" and "right" in captions false;
            "color" changes brightness, contrast and saturation by up to 20% each.
        seed: 0 or more.
        epoch: From 0.
        index: Of the image, from 0.

    Returns:
        An image of mode "RGB", smaller after "crop". Augmentations do not depend on each other.
    """
    for stream, (name, change) in enumerate(_CHANGES.items(), start=1):
        if name in augmentation:
            # Streams count from 1: captions are chosen from [seed, epoch, index], and NumPy ignores a 0 at
            # the end.
            image = change(image, np.random.default_rng([seed, epoch, index, stream]))
    return image
