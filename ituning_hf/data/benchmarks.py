"""The number of images of the captioning benchmarks.

- COCO, Flickr30k and Flickr8k by Karpathy's splits: `dataset_coco.json`, `dataset_flickr30k.json` and
  `dataset_flickr8k.json` of https://cs.stanford.edu/people/karpathy/deepimagesent/; COCO's are also at
  https://www.tensorflow.org/datasets/catalog/coco_captions.
- NoCaps: https://nocaps.org/download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """A benchmark's images.

    Args:
        name: For messages.
        splits: Number of images of each split of its files.
    """

    name: str
    splits: Mapping[str, int]

    @property
    def num_train_images(self) -> int:
        """The number of images that captioners are trained on: of COCO, train and restval."""
        return self.splits.get("train", 0) + self.splits.get("restval", 0)


COCO = BenchmarkData("COCO", {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000})
FLICKR30K = BenchmarkData("Flickr30k", {"train": 29_000, "val": 1_014, "test": 1_000})
FLICKR8K = BenchmarkData("Flickr8k", {"train": 6_000, "val": 1_000, "test": 1_000})
NOCAPS = BenchmarkData("NoCaps", {"val": 4_500, "test": 10_600})
NOCAPS_DOMAINS = {
    "val": {"in-domain": 648, "near-domain": 2_938, "out-domain": 914},
    "test": {"in-domain": 1_311, "near-domain": 7_406, "out-domain": 1_883},
}
