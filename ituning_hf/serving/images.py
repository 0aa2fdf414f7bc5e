"""Decode the images of requests, and prepare their pixels for a captioner."""

from __future__ import annotations

import base64
import re
from typing import Any

import torch

from ..data.images import TooManyPixelsError, UnreadableImageError, load_image
from .errors import RequestError

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)


def prepare_image(image: bytes | str, processor: Any, max_pixels: int) -> torch.Tensor:
    """Decode an image and prepare it.

    Args:
        image: The bytes of an image file, or their base64 text, with or without a data URL's beginning.
        processor: The processor of a captioner.
        max_pixels: The most pixels of an image.

    Returns:
        Pixel values of shape (1, 3, image_size, image_size).

    Raises:
        RequestError: It cannot be decoded, or has too many pixels.
    """
    data = decode_base64(image) if isinstance(image, str) else image
    try:
        picture = load_image(data, "the image", max_pixels)
    except TooManyPixelsError as error:
        raise RequestError(413, str(error)) from error
    except UnreadableImageError as error:
        raise RequestError(422, str(error)) from error
    return processor(images=picture, return_tensors="pt")["pixel_values"]


def decode_base64(text: str) -> bytes:
    """Decode base64, with or without a data URL's beginning.

    Raises:
        RequestError: It is not base64.
    """
    beginning = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[beginning.end() if beginning else 0 :], validate=True)
    except ValueError as error:  # also of characters outside ASCII
        expected = "expected base64, or a data URL such as data:image/jpeg;base64,..."
        raise RequestError(422, f"the image begins with {text[:20]!r}, {expected} ({error})") from error
