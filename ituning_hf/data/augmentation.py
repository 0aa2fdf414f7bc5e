"""Random augmentation of training images: a pure function of seed, epoch and image index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

_MIN_AREA = 0.7
_MAX_STRETCH = 4 / 3
_JITTER = 0.2


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop a random part; the image processor resizes it without distortion.

    The aspect ratio is relative to that of the image: a 4:3 crop of a panorama would be too small.
    """
    area = rng.uniform(_MIN_AREA, 1)
    widest = min(_MAX_STRETCH, 1 / area)  # beyond it the crop would not fit into the image
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


# Applied in this order. The position determines the random stream of each.
_CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "flip": _flip,
    "color": _change_color,
}
AUGMENTATIONS = tuple(_CHANGES)


def augment(
    image: Image.Image, augmentation: Sequence[str], seed: int, epoch: int, index: int
) -> Image.Image:
    """Augment an image at random; the same arguments give the same result.

    Args:
        image: An image of mode "RGB".
        augmentation: Any of these, in any order:
            "crop" crops to at least 70% of the area, with 3/4 to 4/3 of the image's aspect ratio;
            "flip" mirrors half of the images, which makes "left" and "right" in captions wrong;
            "color" changes brightness, contrast and saturation by up to 20% each.
        seed: The random seed, 0 or more.
        epoch: The epoch, from 0.
        index: The index of the image, from 0.

    Returns:
        An image of mode "RGB", smaller after "crop". The augmentations are independent of each other.
    """
    for stream, (name, change) in enumerate(_CHANGES.items(), start=1):
        if name in augmentation:
            # Streams start at 1: captions are chosen with the seed [seed, epoch, index], and NumPy ignores
            # a trailing 0.
            image = change(image, np.random.default_rng([seed, epoch, index, stream]))
    return image
