"""The captioner's input for an image: pixels, or stored features of the vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..captioner.images_ituning import prepare_images
from .augmentation import augment
from .columns import CaptionedImage


class PixelInputs:
    """Images as pixels: decoded, augmented, and prepared for the vision encoder.

    Args:
        image_processor: `image_processor(images=[image], return_tensors="pt")["pixel_values"]` is a float
            tensor of shape (1, 3, H, W), with constant H and W.
        augmentation: Names of augmentations, for training only; see `augment`.
        seed: Seed of the augmentation.
    """

    name = "pixel_values"  # the captioner's keyword

    def __init__(self, image_processor: Any, augmentation: Sequence[str] = (), seed: int = 0) -> None:
        self.image_processor, self.augmentation, self.seed = image_processor, tuple(augmentation), seed

    def read(self, image: CaptionedImage, epoch: int, index: int) -> torch.Tensor:
        """Return the pixels of an image, (3, H, W).

        Args:
            image: The image.
            epoch: The epoch; it determines the augmentation together with the index.
            index: The image's index in its dataset.

        Raises:
            UnreadableImageError: The image cannot be read.
        """
        return self._prepare(augment(image.load(), self.augmentation, self.seed, epoch, index))

    def blank(self) -> torch.Tensor:
        """Return zeros, (3, H, W)."""
        return torch.zeros_like(self._prepare(Image.new("RGB", (64, 64))))

    def _prepare(self, image: Image.Image) -> torch.Tensor:
        return prepare_images(self.image_processor, [image], return_tensors="pt")["pixel_values"][0]


class FeatureInputs:
    """Images as the vision encoder's features. No image file is opened.

    Args:
        features: A `FeatureStore`, or another object with its methods `read` and `blank`.
    """

    name = "visual_features"  # the captioner's keyword

    def __init__(self, features: Any) -> None:
        self.features = features

    def read(self, image: CaptionedImage, epoch: int, index: int) -> torch.Tensor:
        """Return the features of an image, (N, d_v), the same in every epoch.

        Raises:
            UnreadableImageError: The image could not be read when the features were computed.
        """
        return self.features.read(image.name)

    def blank(self) -> torch.Tensor:
        """Return zeros, (N, d_v)."""
        return self.features.blank()


ImageInputs = PixelInputs | FeatureInputs
