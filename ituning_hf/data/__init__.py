"""Captioned images: reading, drawing, ordering and batching them."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .dataset import CaptionDataset as CaptionDataset
    from .dataset import Collator as Collator
    from .images import UnreadableImageError as UnreadableImageError
    from .images import find_images as find_images
    from .images import load_image as load_image
    from .loading import load_captioned_images as load_captioned_images
    from .records import CaptionedImage as CaptionedImage
    from .scenes import read_scenes as read_scenes

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "dataset": ["CaptionDataset", "Collator"],
        "images": ["UnreadableImageError", "find_images", "load_image"],
        "loading": ["load_captioned_images"],
        "records": ["CaptionedImage"],
        "scenes": ["read_scenes"],
    },
)
