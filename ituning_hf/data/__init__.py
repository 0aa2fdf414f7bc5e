"""Captioned images: file formats, synthetic scenes, sampling and batching."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .columns import CaptionedImage as CaptionedImage
    from .columns import CaptionedImages as CaptionedImages
    from .dataset import CaptionDataset as CaptionDataset
    from .images import UnreadableImageError as UnreadableImageError
    from .images import load_image as load_image
    from .loading import load_captioned_images as load_captioned_images

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "columns": ["CaptionedImage", "CaptionedImages"],
        "dataset": ["CaptionDataset"],
        "images": ["UnreadableImageError", "load_image"],
        "loading": ["load_captioned_images"],
    },
)
