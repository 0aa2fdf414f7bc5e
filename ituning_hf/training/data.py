"""The images of a run: splits, data loaders, and the limit of unreadable images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..captioner.processing_ituning import ITuningProcessor
from ..data.columns import CaptionedImages
from ..data.dataset import CaptionDataset, Collator
from ..data.images import allowed_unreadable
from ..data.inputs import FeatureInputs, ImageInputs, PixelInputs
from ..data.sampler import ImageBatchSampler, SampleKey
from ..data.workers import ignore_stop_signals, usable_workers
from ..evaluation.metrics import CIDER_NEEDS_IMAGES
from ..features.store import FeatureStore
from ..utils.distributed import raise_on_main
from ..utils.errors import UserError
from .arguments import TrainArguments
from .errors import TrainingError

logger = logging.getLogger(__name__)


@dataclass
class TrainingData:
    """The images of a run.

    Args:
        train: The images to train on.
        evaluation: The images to validate on; empty for no validation.
        features: Their stored features; None to open the images.
    """

    train: CaptionedImages
    evaluation: CaptionedImages
    features: FeatureStore | None = None

    def fingerprint(self) -> str:
        """Return a digest of the images' names and captions; pixels are not read."""
        both = self.train.fingerprint() + self.evaluation.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def describe_features(self) -> str | None:
        """Return the storage and the fingerprint of the features, None if the images are opened."""
        if self.features is None:
            return None
        images = CaptionedImages.concatenate([self.train, self.evaluation])
        fingerprint = self.features.fingerprint(images)
        return f"{self.features.spec.storage} {fingerprint}"


def load_data(args: TrainArguments) -> TrainingData:
    """Read the splits that the settings name.

    Raises:
        UserError: if the dataset cannot be read, or does not have the expected number of images.
        FileNotFoundError: if the dataset does not exist, or (without stored features) one of its images.
    """
    require_images = args.features is None
    splits = ["train"] if args.eval_split == "none" else ["train", args.eval_split]
    loaded = args.load_splits(splits, args.seed, require_images=require_images)
    train = next(loaded)
    args.check_count("expected_train_images", train)
    evaluation = train[:0]
    if args.eval_split != "none":
        try:
            evaluation = next(loaded)
        except ValueError as error:
            raise UserError(f"{error}. To train without validation, give --eval_split none.") from error
        args.check_count("expected_eval_images", evaluation)
    return TrainingData(train, evaluation)


def limit_evaluation(data: TrainingData, args: TrainArguments) -> TrainingData:
    """Select at most `args.max_eval_images` images to validate on, evenly spaced over the split.

    Raises:
        UserError: if the best captioner is the one with the highest CIDEr, and a single image is scored.
    """
    total = len(data.evaluation)
    count = min(total, args.max_eval_images)
    if args.metric_for_best_model == "cider" and min(count, args.eval_caption_images) == 1:
        raise UserError(
            "--metric_for_best_model cider needs captions of at least 2 validation images: CIDEr is 0 for a "
            f"single one, because {CIDER_NEEDS_IMAGES}. Validate on more images, or give another metric."
        )
    chosen = [i * total // count for i in range(count)]
    return replace(data, evaluation=data.evaluation.select(chosen))


def with_features(data: TrainingData, folder: str | None) -> TrainingData:
    """Open the stored features in a folder, if one is given, and check that they cover all images."""
    if folder is None:
        return data
    store = FeatureStore(folder)
    for images in (data.train, data.evaluation):
        store.require(images)
    return replace(data, features=store)


class Batches:
    """Creates a run's samplers and data loaders, and reports images that cannot be read.

    Attributes:
        unreadable: The errors of images that this process could not read; each is logged once.
    """

    def __init__(
        self,
        args: TrainArguments,
        processor: ITuningProcessor,
        accelerator: Accelerator,
        features: FeatureStore | None,
    ) -> None:
        self.args, self.processor, self.accelerator = args, processor, accelerator
        self.features = features
        self.unreadable: set[str] = set()

    def inputs(self, augmentation: Sequence[str] = ()) -> ImageInputs:
        """Return the reader of the captioner's inputs: pixels or stored features."""
        if self.features is not None:
            return FeatureInputs(self.features)
        return PixelInputs(self.processor.image_processor, augmentation, self.args.seed)

    def sampler(
        self, images: CaptionedImages, accumulation_steps: int = 1, **options: Any
    ) -> ImageBatchSampler:
        """Return the sampler that divides images among the processes; `options` are for the sampler."""
        return ImageBatchSampler(
            num_images=len(images),
            per_device_batch_size=self.args.per_device_train_batch_size,
            gradient_accumulation_steps=accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            seed=self.args.seed,
            **options,
        )

    def loader(
        self,
        images: CaptionedImages,
        batches: Iterable[list[SampleKey]],
        captions_per_image: int,
        augmentation: Sequence[str] = (),
        collate: Any = None,
    ) -> DataLoader:
        """Return a data loader over batches of keys of `images`, by default collated for the captioner."""
        inputs = self.inputs(augmentation)
        max_tokens, seed = self.args.max_caption_tokens, self.args.seed
        return DataLoader(
            CaptionDataset(images, inputs, self.processor, captions_per_image, max_tokens, seed),
            batch_sampler=batches,
            collate_fn=collate or Collator(inputs, self.processor, captions_per_image),
            num_workers=usable_workers(self.args.dataloader_num_workers),
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
        )

    def log_unreadable(self, problems: Iterable[str]) -> None:
        """Log each error that was not logged before."""
        for text in problems:
            if text not in self.unreadable:
                self.unreadable.add(text)
                logger.warning("skipped: %s", text)

    def check_unreadable(self, count: int, images: CaptionedImages) -> None:
        """Stop the run if all images of a split are unreadable, or more than allowed.

        Args:
            count: How many could not be read, on all processes together.
            images: All images of the split.

        Raises:
            TrainingError: on the main process; OtherProcessError on the others.
        """
        share = self.args.max_unreadable_share
        allowed = allowed_unreadable(share, len(images))
        if count <= allowed:
            return
        example = min(self.unreadable, default="see the warnings above")
        message = (
            f"{count} of {len(images)} images could not be read, and --max_unreadable_share {share} allows "
            f"{allowed} (for example: {example}). Repair the images or allow more."
        )
        raise_on_main(self.accelerator, TrainingError(message))
