"""Captioned images: reading them, drawing them, ordering them, batching them."""

from .dataset import (
    CaptionDataset,
    CaptionItem,
    CaptionProcessor,
    Collator,
    count_over_long,
)
from .imagefolder import read_imagefolder
from .images import IMAGE_SUFFIXES, UnreadableImageError, find_images, load_image
from .karpathy import read_karpathy
from .loading import load_captioned_images
from .records import CaptionedImage, check_images_exist, clean_caption
from .sampler import ImageBatchSampler, SampleKey
from .scenes import Scene, SceneObject, make_scene, read_scenes

__all__ = [
    "IMAGE_SUFFIXES",
    "CaptionDataset",
    "CaptionItem",
    "CaptionProcessor",
    "CaptionedImage",
    "Collator",
    "ImageBatchSampler",
    "SampleKey",
    "Scene",
    "SceneObject",
    "UnreadableImageError",
    "check_images_exist",
    "clean_caption",
    "count_over_long",
    "find_images",
    "load_captioned_images",
    "load_image",
    "make_scene",
    "read_imagefolder",
    "read_karpathy",
    "read_scenes",
]
