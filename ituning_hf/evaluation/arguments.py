"""What an evaluation can be told, and what each of its settings may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.arguments import DatasetArguments
from ..utils.rules import AT_LEAST_ONE, NOT_EMPTY, NOT_NEGATIVE, SEED, SHARE, one_of
from ..utils.settings import Settings, option

SPLITS = ("train", "val", "test")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8",)


@dataclass
class CaptionerArguments:
    """What makes the captions."""

    title: ClassVar[str] = "captions"

    model: str | None = option(
        None, "the captioner: its folder or Hub id", NOT_EMPTY, "MODEL", "none; --predictions in its place"
    )
    revision: str | None = option(None, "the captioner's revision on the Hub", NOT_EMPTY, unset="its newest")
    vision_model: str | None = option(
        None, "where its frozen vision encoder has moved to", NOT_EMPTY, "MODEL", "where the captioner says"
    )
    text_model: str | None = option(
        None, "where its frozen language model has moved to", NOT_EMPTY, "MODEL", "where the captioner says"
    )
    num_beams: int | None = option(
        None, "beams of the search; 1 is greedy", AT_LEAST_ONE, unset="the captioner's own, or 5"
    )
    max_new_tokens: int | None = option(
        None, "the longest caption, in tokens", AT_LEAST_ONE, unset="the captioner's own"
    )
    batch_size: int = option(16, "images that a process captions at a time", AT_LEAST_ONE)
    dtype: str | None = option(
        None, "precision of everything", one_of(DTYPES), "|".join(DTYPES), "that of the files"
    )
    quantization: str | None = option(
        None,
        "hold the frozen language model's weights so; for a CPU",
        one_of(QUANTIZATIONS),
        "|".join(QUANTIZATIONS),
        "as they are",
    )
    predictions: str | None = option(
        None,
        "score captions made elsewhere, without a captioner: COCO results, the lines of `ituning caption "
        "--output`, or a JSON object of captions by file name",
        NOT_EMPTY,
        "FILE",
        "none",
    )


@dataclass
class ImagesArguments(DatasetArguments):
    """The images, and what people wrote about them."""

    title: ClassVar[str] = "data"

    split: str = option("test", "split to caption", one_of(SPLITS), "|".join(SPLITS))
    expected_images: int | None = option(
        None,
        "images that the split must have, all of them readable; another number is refused",
        AT_LEAST_ONE,
        unset="any number",
    )
    dataset_name: str | None = option(
        None,
        "what the report and the model card call the data set",
        NOT_EMPTY,
        "NAME",
        "the last part of --dataset",
    )
    seed: int = option(0, "of drawn scenes, and of the lot where the data set has no splits", SEED)
    features: str | None = option(
        None,
        "stored features of the images, made by `ituning features build`: no picture is decoded, no vision "
        "encoder loaded",
        NOT_EMPTY,
        "FOLDER",
        "none; the pictures are read",
    )
    max_unreadable_share: float = option(
        0.05, "share of the images that may be unreadable, and are left out, before it gives up", SHARE
    )
    dataloader_num_workers: int = option(
        2,
        "processes that read images for each captioning process, at most as many as there are cores; 0 reads "
        "in that process",
        NOT_NEGATIVE,
    )


@dataclass
class ScoringArguments:
    """How the captions are scored."""

    title: ClassVar[str] = "scores"

    java: bool | None = option(
        None,
        "true demands Java for the official tokenizer and METEOR; false does without both",
        metavar="true|false",
        unset="taken where it is found",
    )
    clip_model: str | None = option(
        None,
        "a full CLIP, for CLIPScore and RefCLIPScore; reads the pictures",
        NOT_EMPTY,
        "MODEL",
        "without them",
    )


@dataclass
class ReportArguments:
    """Where the report goes."""

    title: ClassVar[str] = "report"

    output_dir: str = option(
        "outputs/evaluation",
        "folder that the report is written to; must not hold another evaluation's",
        NOT_EMPTY,
        "FOLDER",
    )
    overwrite: bool = option(False, "replace the evaluation that --output_dir holds")
    no_card: bool = option(
        False, "do not put the scores on the model card (and into evaluation.json) of a captioner's folder"
    )
    dry_run: bool = option(
        False, "load and check everything, caption one batch, say what would be done, and write nothing"
    )


# The order in which the help shows them.
SECTIONS = (CaptionerArguments, ImagesArguments, ScoringArguments, ReportArguments)


@dataclass
class EvaluateArguments(
    ReportArguments, ScoringArguments, ImagesArguments, CaptionerArguments, Settings
):  # a dataclass takes its fields from the last base first
    """The settings of an evaluation, each of them checked; `ituning evaluate --help` says what they mean.

    Raises:
        ValueError: for a value of the wrong type or out of its range, or two that contradict each other,
            worded with the command line's flags.
    """

    paths: ClassVar[frozenset[str]] = DatasetArguments.paths | {
        "model",
        "vision_model",
        "text_model",
        "predictions",
        "features",
        "clip_model",
        "output_dir",
    }

    @property
    def reads_pictures(self) -> bool:
        """Whether the pictures are opened, for captions or for CLIPScore."""
        return self.clip_model is not None or (self.features is None and self.predictions is None)

    def __post_init__(self) -> None:
        """Check every value, and those that depend on each other."""
        super().__post_init__()
        if (self.model is None) == (self.predictions is None):
            given = "neither is" if self.model is None else "both are"
            raise ValueError(
                f"--model makes the captions, --predictions holds them, and {given} given: give one of them."
            )
