"""The settings of `ituning evaluate`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..data.arguments import SPLITS, DatasetArguments
from ..inference.arguments import BatchArguments, CaptionerArguments
from ..utils.errors import UserError
from ..utils.rules import AT_LEAST_ONE, FILE, FOLDER, MODEL, NAME, NOT_NEGATIVE, SEED, SHARE, one_of
from ..utils.settings import Settings, option

_WITHOUT_EFFECT_ON_SCORES = {
    *("vision_model", "text_model", "features", "expected_images", "max_unreadable_share", "batch_size"),
    *("dataloader_num_workers", "output_dir", "overwrite", "report", "no_card", "dry_run"),
}


@dataclass
class ImagesArguments(DatasetArguments):
    """The images and their human captions."""

    title: ClassVar[str] = "data"

    split: str = option("test", "split to caption", one_of((*SPLITS, "all")))
    expected_images: int | None = option(
        None, "number of images that the split must have, all of them readable", AT_LEAST_ONE, "any number"
    )
    dataset_name: str | None = option(
        None, "name of the dataset in the report and on the model card", NAME, "the last part of --dataset"
    )
    seed: int = option(0, "seed of synthetic scenes, and of the splits if the dataset has none", SEED)
    features: str | None = option(
        None,
        "folder written by `ituning features build`, used instead of the images and the vision encoder",
        FOLDER,
        "none",
    )
    max_unreadable_share: float = option(
        0.05, "share of the images that may be unreadable; they are skipped", SHARE
    )
    dataloader_num_workers: int = option(
        2, "worker processes that read images, per captioning process; 0 uses none", NOT_NEGATIVE
    )


@dataclass
class ScoringArguments:
    """How the captions are scored."""

    title: ClassVar[str] = "scores"

    predictions: str | None = option(
        None,
        "captions to score instead of a captioner's: COCO results, the output of `ituning caption`, or a "
        "JSON object of captions by file name",
        FILE,
        "none",
    )
    java: bool | None = option(
        None,
        "true requires Java, for the official tokenizer, METEOR and SPICE; false does not use Java",
        metavar="true|false",
        unset="used if installed",
    )
    clip_model: str | None = option(
        None, "full CLIP for CLIPScore and RefCLIPScore, which require the images", MODEL, "none"
    )


@dataclass
class ReportArguments:
    """Where the report is written."""

    title: ClassVar[str] = "report"

    output_dir: str = option("outputs/evaluation", "folder of the report, new or empty", FOLDER)
    overwrite: bool = option(False, "write into a non-empty folder, replacing the report in it")
    report: str | None = option(
        None,
        "page with scores, pictures and a table of all images to write, such as report.html",
        FILE,
        "none",
    )
    no_card: bool = option(False, "do not add the scores to the model card in the captioner's folder")
    dry_run: bool = option(False, "check everything, caption one batch, and write nothing")


@dataclass
class EvaluateArguments(
    ReportArguments, ScoringArguments, ImagesArguments, BatchArguments, CaptionerArguments, Settings
):  # dataclass fields are collected from the last base class first
    """The settings of an evaluation; `ituning evaluate --help` describes them.

    Raises:
        UserError: A value has the wrong type or is out of range, or not exactly one of `model` and
            `predictions` is given.
    """

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if (self.model is None) == (self.predictions is None):
            raise UserError(
                "give either --model, to generate captions, or --predictions, a file of captions."
            )

    @property
    def reads_images(self) -> bool:
        """Whether image files are opened, for captions or for CLIPScore."""
        return self.clip_model is not None or (self.features is None and self.predictions is None)

    def command(self) -> str:
        """Return a command line that computes the same scores, without paths of this machine."""
        words = ["ituning", "evaluate"]
        for declared in fields(self):
            value: Any = getattr(self, declared.name)
            if value == declared.default or declared.name in _WITHOUT_EFFECT_ON_SCORES:
                continue
            if isinstance(value, str) and Path(value).is_absolute():
                value = Path(value).name
            words += [f"--{declared.name}", str(value).lower() if isinstance(value, bool) else str(value)]
        return shlex.join(words)
