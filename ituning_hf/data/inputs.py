"""What a captioner is given of an image: its pixels, or what the vision encoder made of them before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from ..captioner.processing_ituning import prepare_images
from .augmentation import augment, check_augmentation
from .records import CaptionedImage


class FeatureSource(Protocol):
    """Where the vision encoder's features of images come from; it can be pickled."""

    def read(self, name: str) -> torch.Tensor:
        """Return the features of the image of that name, (N, d_v), always of one shape and precision.

        Raises:
            UnreadableImageError: Its picture could not be read when the features were computed.
        """

    def blank(self) -> torch.Tensor:
        """Return zeros of the shape and precision that features have."""


class ImageInputs(Protocol):
    """A kind of input by which a captioner takes images.

    Attributes:
        name: The captioner's keyword for it.
    """

    name: str

    def read(self, image: CaptionedImage, epoch: int, index: int) -> torch.Tensor:
        """Return the input of one image, without an axis of images.

        Args:
            image: The image.
            epoch: With the index, decides on what is random.
            index: The image's, in its data set.

        Raises:
            UnreadableImageError: There is none.
        """

    def blank(self) -> torch.Tensor:
        """Return zeros of the same shape and precision, for where there is none."""


class PixelInputs:
    """Images as pixels: decoded, augmented, and prepared for the vision encoder.

    Args:
        image_processor: `image_processor(images=[image], return_tensors="pt")["pixel_values"]` is a float
            tensor of shape (1, 3, H, W), with H and W always the same.
        augmentation: Names of random changes, for training only; see `augment`.
        seed: Of these.

    Raises:
        ValueError: An augmentation is unknown.
    """

    name = "pixel_values"

    def __init__(self, image_processor: Any, augmentation: Sequence[str] = (), seed: int = 0) -> None:
        check_augmentation(augmentation)
        self.image_processor, self.augmentation, self.seed = image_processor, tuple(augmentation), seed

    def read(self, image: CaptionedImage, epoch: int, index: int) -> torch.Tensor:
        """Return pixels, (3, H, W)."""
        return self._prepare(augment(image.load(), self.augmentation, self.seed, epoch, index))

    def blank(self) -> torch.Tensor:
        """Return zeros, (3, H, W)."""
        return torch.zeros_like(self._prepare(Image.new("RGB", (64, 64))))

    def _prepare(self, image: Image.Image) -> torch.Tensor:
        return prepare_images(self.image_processor, [image], return_tensors="pt")["pixel_values"][0]


class FeatureInputs:
    """Images as the vision encoder's features: no picture is opened.

    Args:
        features: Where they come from.
    """

    name = "visual_features"

    def __init__(self, features: FeatureSource) -> None:
        self.features = features

    def read(self, image: CaptionedImage, epoch: int, index: int) -> torch.Tensor:
        """Return features, (N, d_v); they are the same in every epoch."""
        return self.features.read(image.name)

    def blank(self) -> torch.Tensor:
        """Return zeros, (N, d_v)."""
        return self.features.blank()
