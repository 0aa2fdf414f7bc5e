"""What a build of stored features can be told, and what each of its settings may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import DatasetArguments
from ..utils.rules import AT_LEAST_ONE, NOT_EMPTY, NOT_NEGATIVE, SEED, one_of, some_of
from ..utils.settings import Settings, option

SPLITS = ("train", "val", "test")
STORAGES = ("bfloat16", "int8", "float32")
MIXED_PRECISIONS = ("no", "bf16", "fp16")


@dataclass
class PicturesArguments(DatasetArguments):
    """The pictures."""

    title: ClassVar[str] = "data"

    splits: list[str] = option(
        [], "splits to store", some_of(SPLITS), "|".join(SPLITS), "all that the data set has"
    )
    seed: int = option(0, "of drawn scenes, and of the lot where the data set has no splits", SEED)


@dataclass
class EncoderArguments:
    """The frozen encoder, and how it computes."""

    title: ClassVar[str] = "encoder"

    vision_model: str | None = option(
        None,
        "the frozen vision encoder, which must be named: a CLIP's folder or Hub id",
        NOT_EMPTY,
        "MODEL",
        "none",
    )
    vision_revision: str | None = option(None, "its revision on the Hub", NOT_EMPTY, unset="its newest")
    vision_feature_layer: int = option(
        -1, "which of its hidden states is stored: -1 the last layer's, 0 the embeddings'"
    )
    mixed_precision: str = option(
        "no",
        "what it computes in; no is the precision of its weights",
        one_of(MIXED_PRECISIONS),
        "|".join(MIXED_PRECISIONS),
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the best", NOT_EMPTY)
    batch_size: int = option(32, "images encoded at a time", AT_LEAST_ONE)
    dataloader_num_workers: int = option(
        2,
        "processes that decode pictures, at most as many as there are cores; 0 decodes where it encodes",
        NOT_NEGATIVE,
    )


@dataclass
class StoreArguments:
    """Where the features go, and in what form."""

    title: ClassVar[str] = "store"

    output_dir: str = option("outputs/features", "the store's folder", NOT_EMPTY, "FOLDER")
    storage: str = option(
        "bfloat16",
        "the form of the numbers; int8 has a scale for each token",
        one_of(STORAGES),
        "|".join(STORAGES),
    )
    shard_size: int = option(
        500,
        "images of a file; the features of one file are held in memory, 151 MB of ViT-B/16 in bfloat16",
        AT_LEAST_ONE,
    )
    dry_run: bool = option(False, "say what would be done and whether it fits, and write nothing")


# The order in which the help shows them.
SECTIONS = (PicturesArguments, EncoderArguments, StoreArguments)


@dataclass
class BuildArguments(
    StoreArguments, EncoderArguments, PicturesArguments, Settings
):  # a dataclass takes its fields from the last base first
    """The settings of a build, each of them checked; `ituning features build --help` says what they mean.

    Raises:
        ValueError: for a value of the wrong type or out of its range, or no encoder, worded with the command
            line's flags.
    """

    paths: ClassVar[frozenset[str]] = DatasetArguments.paths | {"vision_model", "output_dir"}

    def __post_init__(self) -> None:
        """Check every value, and that there is an encoder."""
        super().__post_init__()
        if self.vision_model is None:
            raise ValueError(
                "--vision_model is not given: name the encoder that is going to be trained over."
            )
