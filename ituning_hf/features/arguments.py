"""The settings of a build of stored features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import DatasetArguments
from ..utils.rules import AT_LEAST_ONE, FOLDER, MODEL, NAME, NOT_NEGATIVE, SEED, one_of, some_of
from ..utils.settings import REQUIRED, Settings, option

SPLITS = ("train", "val", "test")
STORAGES = ("bfloat16", "int8", "float32")
MIXED_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(kw_only=True)  # a required field may then follow those with defaults
class BuildArguments(DatasetArguments, Settings):
    """The settings of a build; `ituning features build --help` describes them.

    Raises:
        UserError: A value has the wrong type or is out of range.
    """

    title: ClassVar[str] = "features"

    splits: list[str] = option([], "splits to store", some_of(SPLITS), "all that the data set has")
    seed: int = option(0, "seed of drawn scenes, and of the splits if the data set has none", SEED)
    vision_model: str = option(REQUIRED, "the frozen vision encoder: a folder or Hub id of a CLIP", MODEL)
    vision_revision: str | None = option(None, "its revision on the Hub", NAME, "its newest")
    vision_feature_layer: int = option(
        -1, "the hidden state that is stored: -1 is the last layer's, 0 the embeddings'"
    )
    mixed_precision: str = option(
        "no", "precision of the computation; no is that of the weights", one_of(MIXED_PRECISIONS)
    )
    storage: str = option("bfloat16", "stored type; int8 has a scale for each token", one_of(STORAGES))
    output_dir: str = option("outputs/features", "the store's folder", FOLDER)
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps", NAME, "the best available")
    batch_size: int = option(32, "images encoded at a time", AT_LEAST_ONE)
    shard_size: int = option(
        500,
        "images of a file; their features are held in memory, 151 MB for ViT-B/16 in bfloat16",
        AT_LEAST_ONE,
    )
    dataloader_num_workers: int = option(
        2,
        "processes that decode images, at most one for each core; 0 decodes in the main process",
        NOT_NEGATIVE,
    )
    dry_run: bool = option(False, "print the number of images and their size on disk, and write nothing")
