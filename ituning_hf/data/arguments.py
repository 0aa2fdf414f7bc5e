"""The settings that select a dataset, for all commands that read one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..utils.errors import UserError
from ..utils.rules import AT_LEAST_ONE, BETWEEN_0_AND_1, FOLDER, NAME
from ..utils.settings import option

if TYPE_CHECKING:
    from .columns import CaptionedImages

SPLITS = ("train", "val", "test")


@dataclass
class DatasetArguments:
    """Images and their captions."""

    title: ClassVar[str] = "data"

    dataset: str = option(
        "scenes",
        "a folder with metadata.jsonl or caption files, a Karpathy, COCO or NoCaps .json file, a .csv, "
        '.jsonl or .parquet file, tar shards ("x/{000..099}.tar"), the Hub id of a dataset, or "scenes" for '
        "synthetic scenes",
        NAME,
        metavar="DATA",
    )
    image_root: str | None = option(
        None,
        "folder that the image paths are relative to",
        FOLDER,
        "images/ next to the file, or the file's folder",
    )
    image_column: str | None = option(None, "image column of a table", NAME, "found by its name")
    caption_column: str | None = option(None, "caption column of a table", NAME, "found by its name")
    columns: str | None = option(
        None, "column names of a CSV file without a header line: image,caption", NAME, "the first line"
    )
    num_scenes: int = option(1000, "number of scenes for --dataset scenes", AT_LEAST_ONE)
    val_share: float = option(
        0.1,
        "share of the images used as the val split if the dataset has no splits; --seed selects them",
        BETWEEN_0_AND_1,
    )

    def load_split(self, split: str, seed: int, **options: Any) -> CaptionedImages:
        """Read one split of the dataset: "train", "val", "test" or "all"; see `load_splits`."""
        return next(self.load_splits([split], seed, **options))

    def load_splits(
        self, splits: Sequence[str], seed: int, num_scenes: int | None = None, **options: Any
    ) -> Iterator[CaptionedImages]:
        """Read the dataset once, and yield several of its splits.

        Args:
            splits: The splits.
            seed: Seed of the synthetic scenes, and of the splits if the dataset has none.
            num_scenes: Overrides the setting.
            options: `require_captions` and `require_images`, as for `load_captioned_images`.
        """
        from .loading import LoadSettings, load_splits

        root = None if self.image_root is None else Path(self.image_root)
        table = (root, self.image_column, self.caption_column, self.columns)
        options |= {"seed": seed, "num_scenes": num_scenes or self.num_scenes, "val_share": self.val_share}
        return load_splits(self.dataset, splits, LoadSettings(*table, **options))

    def check_count(self, setting: str, images: CaptionedImages) -> None:
        """Compare the number of images in a split with a setting, which may be None.

        Raises:
            UserError: The numbers differ.
        """
        expected = getattr(self, setting)
        if expected not in (None, len(images)):
            raise UserError(
                f"--{setting} is {expected:,}, but the split of {self.dataset} has {len(images):,} images: "
                "complete the dataset, or correct or remove the setting"
            )
