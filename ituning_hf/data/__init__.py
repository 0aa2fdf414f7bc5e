"""Captioned images: reading them, drawing them, ordering them, batching them."""

from .augmentation import AUGMENTATIONS, augment
from .benchmarks import BenchmarkData, explain_count
from .coco import read_coco_captions
from .csv_files import read_csv
from .dataset import CaptionDataset, CaptionItem, CaptionProcessor, Collator, count_over_long
from .hf_datasets import read_hf_dataset
from .imagefolder import read_imagefolder
from .images import IMAGE_SUFFIXES, UnreadableImageError, find_images, load_image
from .inputs import FeatureInputs, FeatureSource, ImageInputs, PixelInputs
from .karpathy import read_karpathy
from .loading import count_splits, load_captioned_images
from .nocaps import read_nocaps
from .records import CaptionedImage, ImageSource, check_images_exist, clean_caption, first_names
from .sampler import ImageBatchSampler, SampleKey
from .scenes import Scene, SceneObject, make_scene, read_scenes
from .splits import MissingSplitError

__all__ = [
    "AUGMENTATIONS",
    "IMAGE_SUFFIXES",
    "BenchmarkData",
    "CaptionDataset",
    "CaptionItem",
    "CaptionProcessor",
    "CaptionedImage",
    "Collator",
    "FeatureInputs",
    "FeatureSource",
    "ImageBatchSampler",
    "ImageInputs",
    "ImageSource",
    "MissingSplitError",
    "PixelInputs",
    "SampleKey",
    "Scene",
    "SceneObject",
    "UnreadableImageError",
    "augment",
    "check_images_exist",
    "clean_caption",
    "count_over_long",
    "count_splits",
    "explain_count",
    "find_images",
    "first_names",
    "load_captioned_images",
    "load_image",
    "make_scene",
    "read_coco_captions",
    "read_csv",
    "read_hf_dataset",
    "read_imagefolder",
    "read_karpathy",
    "read_nocaps",
    "read_scenes",
]
