"""Captioned images: file formats, synthetic scenes, sampling and batching."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .dataset import CaptionDataset as CaptionDataset
    from .images import UnreadableImageError as UnreadableImageError
    from .images import load_image as load_image
    from .loading import load_captioned_images as load_captioned_images
    from .records import CaptionedImage as CaptionedImage

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "dataset": ["CaptionDataset"],
        "images": ["UnreadableImageError", "load_image"],
        "loading": ["load_captioned_images"],
        "records": ["CaptionedImage"],
    },
)
