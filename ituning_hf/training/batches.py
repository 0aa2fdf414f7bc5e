"""What a run reads: its batches, and an account of the images that cannot be read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..captioner.processing_ituning import ITuningProcessor
from ..data.dataset import CaptionDataset, Collator
from ..data.inputs import FeatureInputs, FeatureSource, ImageInputs, PixelInputs
from ..data.records import CaptionedImage
from ..data.sampler import ImageBatchSampler, SampleKey
from ..data.workers import ignore_stop_signals, usable_workers
from ..utils.distributed import tell_once
from .arguments import TrainArguments
from .errors import TooManyUnreadableError

logger = logging.getLogger(__name__)


class BatchMaker:
    """Makes a run's samplers and loaders, for training and for validation.

    Args:
        args: The settings.
        processor: The captioner's processor.
        accelerator: Says how many processes share the images.
        features: What the vision encoder made of the images; None to open them.
    """

    def __init__(
        self,
        args: TrainArguments,
        processor: ITuningProcessor,
        accelerator: Accelerator,
        features: FeatureSource | None,
    ) -> None:
        self.args, self.processor, self.accelerator = args, processor, accelerator
        self.features = features

    def inputs(self, augmentation: Sequence[str] = ()) -> ImageInputs:
        """Return the kind of input by which the captioner takes the images."""
        if self.features is not None:
            return FeatureInputs(self.features)
        return PixelInputs(self.processor.image_processor, augmentation, self.args.seed)

    def sampler(
        self,
        images: Sequence[CaptionedImage],
        accumulation_steps: int = 1,
        shuffle: bool = False,
        start_step: int = 0,
    ) -> ImageBatchSampler:
        """Return what divides the images among the processes, in an order by seed or in their own."""
        return ImageBatchSampler(
            num_images=len(images),
            per_device_batch_size=self.args.per_device_train_batch_size,
            gradient_accumulation_steps=accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            seed=self.args.seed,
            shuffle=shuffle,
            start_step=start_step,
        )

    def loader(
        self,
        images: Sequence[CaptionedImage],
        batches: Iterable[list[SampleKey]],
        captions_per_image: int,
        augmentation: Sequence[str] = (),
        collate: Any = None,
        num_workers: int | None = None,
    ) -> DataLoader:
        """Return what reads batches of images.

        Args:
            images: What the keys count in.
            batches: The keys of each batch.
            captions_per_image: The most captions taken of an image.
            augmentation: Random changes of the images, in training.
            collate: Makes a batch of items; by default the tensors that the captioner takes.
            num_workers: Processes that read, at most as many as cores; by default as the settings say.
        """
        inputs = self.inputs(augmentation)
        workers = self.args.dataloader_num_workers if num_workers is None else num_workers
        dataset = CaptionDataset(
            images,
            inputs,
            self.processor,
            captions_per_image,
            self.args.max_caption_tokens,
            self.args.seed,
        )
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate or Collator(inputs, self.processor, captions_per_image),
            num_workers=usable_workers(workers),
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            # Its own, so that making a loader (a resumed run makes one more) draws nothing from the
            # generator that dropout uses.
            generator=torch.Generator(),
        )


def image_names(images: Sequence[CaptionedImage], keys: Sequence[SampleKey]) -> list[str]:
    """Return the names of a batch's images; empty for what only fills it up."""
    return ["" if key.padding else images[key.index].name for key in keys]


class SkippedImages:
    """The images that this process could not read, each named once.

    Args:
        max_share: Of a split's images that may be unreadable.
        accelerator: Of the run.
    """

    def __init__(self, max_share: float, accelerator: Accelerator) -> None:
        self.max_share, self.accelerator = max_share, accelerator
        self.problems: set[str] = set()

    def name(self, problems: Iterable[str]) -> None:
        """Warn of each image that was not named before."""
        for text in problems:
            if text not in self.problems:
                self.problems.add(text)
                logger.warning("skipped: %s", text)

    def limit(self, unreadable: int, images: Sequence[CaptionedImage]) -> None:
        """Refuse to go on with too few of the images.

        Args:
            unreadable: How many of them could not be read, on all processes together.
            images: All of the split.

        Raises:
            TooManyUnreadableError: if that is more than allowed, or all of them; on the main process.
            OtherProcessError: then, on the others.
        """
        one = min(self.problems, default="named above")
        allowed = math.floor(round(self.max_share * len(images), 6))  # 0.29 of 100 is 28.999999999999996
        if unreadable == len(images):
            message = f"none of the {unreadable} images could be read (one of them: {one}): mend them."
        elif unreadable > allowed:
            message = (
                f"{unreadable} of {len(images)} images could not be read, and --max_unreadable_share "
                f"{self.max_share} allows {allowed} (one of them: {one}). Mend them, or raise it."
            )
        else:
            return
        tell_once(self.accelerator, TooManyUnreadableError(message))
