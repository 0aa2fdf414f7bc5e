"""The settings that name a data set, of every command that reads one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..utils.settings.options import AT_LEAST_ONE, BETWEEN_0_AND_1, NOT_EMPTY, option
from .benchmarks import explain_count
from .loading import count_splits, load_captioned_images
from .records import CaptionedImage


@dataclass
class DatasetArguments:
    """Images and their captions."""

    title: ClassVar[str] = "data"
    paths: ClassVar[frozenset[str]] = frozenset({"dataset", "image_root"})

    dataset: str = option(
        "scenes",
        "a folder with metadata.jsonl, a Karpathy, COCO or NoCaps .json file, a .csv, a .parquet, the name "
        "of a `datasets` data set, or 'scenes' for rendered ones",
        NOT_EMPTY,
        "DATA",
    )
    image_root: str | None = option(
        None,
        "what the image names of a Karpathy file are relative to",
        NOT_EMPTY,
        "FOLDER",
        "images/ beside the file, or the file's own folder",
    )
    image_column: str | None = option(
        None,
        "column of images in a CSV, Parquet or `datasets` data set",
        NOT_EMPTY,
        "NAME",
        "by its usual names",
    )
    caption_column: str | None = option(
        None,
        "column of captions in a CSV, Parquet or `datasets` data set",
        NOT_EMPTY,
        "NAME",
        "by its usual names",
    )
    num_scenes: int = option(1000, "scenes to draw, with --dataset scenes", AT_LEAST_ONE)
    val_share: float = option(
        0.1,
        "share of the images, chosen by --seed, that becomes the val split where a data set has no splits",
        BETWEEN_0_AND_1,
    )

    def load_split(
        self,
        split: str,
        seed: int,
        num_scenes: int | None = None,
        require_captions: bool = True,
        require_images: bool = True,
    ) -> list[CaptionedImage]:
        """Read one split of the data set; every file is known to be there afterwards.

        Args:
            split: "train", "val" or "test".
            seed: Of the drawn scenes, and of the lot where the data set has no splits.
            num_scenes: In place of the setting.
            require_captions: False takes NoCaps' files of images without captions too.
            require_images: False where nobody is going to open them, and they need not be there.

        Raises:
            ValueError: for a data set that cannot be read.
            FileNotFoundError: for one that is not there, or whose images are not.
        """
        return load_captioned_images(
            self.dataset,
            split,
            image_root=self.image_root,
            seed=seed,
            num_scenes=self.num_scenes if num_scenes is None else num_scenes,
            image_column=self.image_column,
            caption_column=self.caption_column,
            val_share=self.val_share,
            require_captions=require_captions,
            require_images=require_images,
        )

    def check_count(
        self, setting: str, expected: int | None, images: Sequence[CaptionedImage], seed: int
    ) -> None:
        """Hold the images of a split against the number that a setting says there must be.

        Args:
            setting: The setting's name, for the message.
            expected: Its value; None checks nothing.
            images: What was read.
            seed: As they were read with.

        Raises:
            ValueError: There are more or fewer; with what each split holds, and what is missing of it.
        """
        if expected is not None and len(images) != expected:
            splits = count_splits(
                self.dataset,
                image_root=self.image_root,
                seed=seed,
                image_column=self.image_column,
                caption_column=self.caption_column,
                val_share=self.val_share,
            )
            problem = explain_count(expected, len(images), splits)
            raise ValueError(f"--{setting} is {expected:,}, and {self.dataset} has {problem}")
