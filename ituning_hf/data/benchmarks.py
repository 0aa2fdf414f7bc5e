"""How many images the benchmarks have, and what is missing where a copy has fewer.

Where the counts come from:

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
        """What captioners are trained on: of COCO, train and restval."""
        return self.splits.get("train", 0) + self.splits.get("restval", 0)


COCO = BenchmarkData("COCO", {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000})
FLICKR30K = BenchmarkData("Flickr30k", {"train": 29_000, "val": 1_014, "test": 1_000})
FLICKR8K = BenchmarkData("Flickr8k", {"train": 6_000, "val": 1_000, "test": 1_000})
NOCAPS = BenchmarkData("NoCaps", {"val": 4_500, "test": 10_600})
NOCAPS_DOMAINS = {
    "val": {"in-domain": 648, "near-domain": 2_938, "out-domain": 914},
    "test": {"in-domain": 1_311, "near-domain": 7_406, "out-domain": 1_883},
}


def explain_count(expected: int, found: int, splits: Mapping[str, int]) -> str:
    """Say what a data set has in place of an expected number of images.

    Args:
        expected: How many images there must be.
        found: How many there are.
        splits: How many each split of the data set has.

    Returns:
        The end of a sentence that begins with the data set's name. Where the expected number is that of one
        benchmark, it compares the splits with its.
    """
    text = f"{found:,} images"
    known = [data for data in (COCO, FLICKR30K, FLICKR8K, NOCAPS) if expected in _counts(data)]
    if len(known) == 1:
        text += f". {known[0].name}: {_compare(splits, known[0].splits)}"
    elif splits:
        text += f" (in all: {', '.join(f'{split} {count:,}' for split, count in splits.items())})"
    return f"{text}. Mend the data set, or give the number that is meant, or none."


def _counts(data: BenchmarkData) -> set[int]:
    return {data.num_train_images, data.splits.get("val", 0), data.splits.get("test", 0)}


def _compare(found: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    differences = [
        f"{split} {count:,} expected, {found.get(split, 0):,} found"
        for split, count in wanted.items()
        if found.get(split, 0) != count
    ]
    return "; ".join(differences) or "the splits are complete, and another one was meant"
