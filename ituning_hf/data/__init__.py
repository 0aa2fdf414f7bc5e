"""Captioned images: reading, drawing, ordering and batching them."""

import importlib
from typing import Any

_MODULES = {
    "augmentation": ("AUGMENTATIONS", "augment"),
    "dataset": ("CaptionDataset", "CaptionItem", "Collator", "count_over_long"),
    "images": ("IMAGE_SUFFIXES", "UnreadableImageError", "find_images", "load_image"),
    "inputs": ("FeatureInputs", "FeatureSource", "ImageInputs", "PixelInputs"),
    "loading": ("load_captioned_images",),
    "records": ("CaptionedImage", "ImageSource", "MissingSplitError", "clean_caption"),
    "sampler": ("ImageBatchSampler", "SampleKey"),
    "scenes": ("Scene", "SceneObject", "make_scene", "read_scenes"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
