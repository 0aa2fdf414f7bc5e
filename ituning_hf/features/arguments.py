"""The settings of `ituning features build`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import SPLITS, DatasetArguments
from ..utils import rules
from ..utils.settings import REQUIRED, Settings, option

STORAGES = ("bfloat16", "int8", "float32")


@dataclass(kw_only=True)  # allows a required field after fields with defaults
class BuildArguments(DatasetArguments, Settings):
    """The settings of a build; `ituning features build --help` describes them."""

    title: ClassVar[str] = "features"

    splits: list[str] = option([], "splits to store", rules.some_of(SPLITS), "all splits of the dataset")
    seed: int = option(0, "seed of synthetic scenes, and of the splits if the dataset has none", rules.SEED)
    vision_model: str = option(REQUIRED, "frozen vision encoder: a folder or Hub id", rules.MODEL)
    vision_revision: str | None = option(None, "the encoder's revision on the Hub", rules.NAME, "the newest")
    vision_feature_layer: int = option(-1, "hidden state to store: -1 for the output, 0 for the embeddings")
    mixed_precision: str = option(
        "no",
        "precision of the computation; no for that of the weights, float32 on a CPU",
        rules.one_of(rules.MIXED_PRECISIONS),
    )
    storage: str = option(
        "bfloat16", "data type of the stored features; int8 has one scale per token", rules.one_of(STORAGES)
    )
    output_dir: str = option("outputs/features", "folder of the feature store", rules.FOLDER)
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps", rules.NAME, "the best available")
    batch_size: int = option(32, "images per batch", rules.AT_LEAST_ONE)
    shard_size: int = option(
        500, "images per file, kept in memory: 151 MB for 197 x 768 values in bfloat16", rules.AT_LEAST_ONE
    )
    dataloader_num_workers: int = option(
        2, "processes that decode images, at most one per core; 0: the main process", rules.NOT_NEGATIVE
    )
    dry_run: bool = option(False, "print the number of images and the size of their features, write nothing")
