"""The settings that name a data set, for every command that reads one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..utils.errors import UserError
from ..utils.rules import AT_LEAST_ONE, BETWEEN_0_AND_1, FOLDER, NAME
from ..utils.settings import option

if TYPE_CHECKING:
    from .records import CaptionedImage


@dataclass
class DatasetArguments:
    """Images and their captions."""

    title: ClassVar[str] = "data"

    dataset: str = option(
        "scenes",
        "a folder with metadata.jsonl, a Karpathy, COCO or NoCaps .json file, a .csv, a .parquet, the name "
        "of a `datasets` data set, or 'scenes' for drawn ones",
        NAME,
        metavar="DATA",
    )
    image_root: str | None = option(
        None,
        "the folder that the file names in a JSON file or a table are relative to",
        FOLDER,
        "images/ next to the file, or the file's own folder",
    )
    image_column: str | None = option(
        None, "column of images in a CSV, Parquet or `datasets` data set", NAME, "by its usual names"
    )
    caption_column: str | None = option(
        None, "column of captions in a CSV, Parquet or `datasets` data set", NAME, "by its usual names"
    )
    num_scenes: int = option(1000, "number of scenes, with --dataset scenes", AT_LEAST_ONE)
    val_share: float = option(
        0.1,
        "share of the images, chosen by --seed, that becomes the val split if the data set has no splits",
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
        """Read one split of the data set; see `load_captioned_images`.

        Args:
            split: "train", "val" or "test".
            seed: Seed of the drawn scenes, and of the splits if the data set has none.
            num_scenes: Replaces the setting.
            require_captions: False also accepts a split that has no captions at all.
            require_images: False does not check that the image files exist.
        """
        from .loading import load_captioned_images

        return load_captioned_images(
            self.dataset,
            split,
            image_root=self.image_root,
            seed=seed,
            num_scenes=num_scenes or self.num_scenes,
            image_column=self.image_column,
            caption_column=self.caption_column,
            val_share=self.val_share,
            require_captions=require_captions,
            require_images=require_images,
        )

    def check_count(self, setting: str, images: Sequence[CaptionedImage]) -> None:
        """Compare the number of images of a split with a setting, which may be None.

        Raises:
            UserError: The numbers differ.
        """
        expected = getattr(self, setting)
        if expected not in (None, len(images)):
            raise UserError(
                f"--{setting} is {expected:,}, but the split has {len(images):,} images in {self.dataset}: "
                "complete the data set, or correct or remove the setting"
            )
