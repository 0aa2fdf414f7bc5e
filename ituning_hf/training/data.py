"""The images of a run: splits, data loaders, and the limit of unreadable images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..captioner.processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..data.columns import CaptionedImages
from ..data.dataset import CaptionDataset, Collator
from ..data.images import allowed_unreadable
from ..data.inputs import FeatureInputs, ImageInputs, PixelInputs
from ..data.loading import refuse_settings
from ..data.sampler import ImageBatchSampler, SampleKey
from ..data.shards import find_shards, select_shards
from ..data.stream import ShardStream, StreamSampler
from ..data.workers import initialize_worker, usable_workers
from ..evaluation.metrics import CIDER_NEEDS_IMAGES
from ..features.store import FeatureStore
from ..utils.distributed import raise_on_main
from ..utils.errors import UserError
from .arguments import TrainArguments
from .errors import TrainingError

logger = logging.getLogger(__name__)


def count_label_tokens(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the number of label tokens of a batch. The first token of a row is not predicted."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()


@dataclass
class TrainingData:
    """The images of a run.

    Args:
        train: The images to train on, or a stream of them.
        evaluation: The images to validate on; empty for no validation.
        features: Their stored features; None to open the images.
        num_eval_images: The number of images in the validation split, if `evaluation` has only some of them.
    """

    train: CaptionedImages | ShardStream
    evaluation: CaptionedImages
    features: FeatureStore | None = None
    num_eval_images: int | None = None

    @property
    def num_train_images(self) -> int | None:
        """The number of images to train on, None for a stream of unknown length."""
        return self.train.num_images if isinstance(self.train, ShardStream) else len(self.train)

    def name_of(self, key: SampleKey) -> str:
        """Return the name of an image to train on."""
        image = key.image or self.train[key.index]  # type: ignore[index] # a stream's keys contain theirs
        return image.name

    def fingerprint(self) -> str:
        """Return a digest of the images' names and captions (of a stream, of its shards)."""
        both = self.train.fingerprint() + self.evaluation.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def describe_features(self) -> str | None:
        """Return the storage and the fingerprint of the features, None if the images are opened."""
        if self.features is None or isinstance(self.train, ShardStream):
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
    # Stored features belong to images by name, so all names are needed.
    if require_images and (shards := find_shards(args.dataset)):
        return _open_stream(args, shards)
    splits = ["train"] if args.eval_split == "none" else ["train", args.eval_split]
    loaded = args.load_splits(splits, args.seed, require_images=require_images)
    train = next(loaded)
    args.check_count("expected_train_images", train)
    evaluation = train[:0]
    if args.eval_split != "none":
        with _advice_on_validation():
            evaluation = next(loaded)
        args.check_count("expected_eval_images", evaluation)
    return TrainingData(train, evaluation)


def _open_stream(args: TrainArguments, shards: Mapping[str, str]) -> TrainingData:
    """Open tar shards to train on; read the first images to validate on."""
    refuse_settings("tar shards", args.dataset, args)
    unknown = {
        "--max_train_steps": args.max_train_steps is None,
        "--eval_steps": args.eval_split != "none" and args.eval_steps == "epoch",
        "--checkpointing_steps": args.checkpointing_steps == "epoch",
    }
    if args.expected_train_images is None and any(unknown.values()):
        flags = " and ".join(f"{flag} N" for flag, is_unknown in unknown.items() if is_unknown)
        raise UserError(
            f"the number of images in {args.dataset} is not known before they are read, so an epoch has no "
            f"length: give {flags}, in optimizer steps; or --expected_train_images N, the length of an epoch"
        )
    train, split = select_shards(shards, "train", args.dataset)
    stream = ShardStream(
        train, args.seed, args.val_share if split is None else 0.0, args.expected_train_images
    )
    if args.eval_split == "none":
        return TrainingData(stream, CaptionedImages.from_images([]))
    with _advice_on_validation():
        evaluation = stream.validation_images(shards, args.eval_split, args.dataset, args.max_eval_images)
    if len(evaluation) < args.max_eval_images:  # otherwise there may be more
        args.check_count("expected_eval_images", evaluation)
    return TrainingData(stream, evaluation)


@contextmanager
def _advice_on_validation() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(f"{error}. To train without validation, give --eval_split none.") from error


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
    return replace(data, evaluation=data.evaluation.select(chosen), num_eval_images=total)


def with_features(data: TrainingData, folder: str | None) -> TrainingData:
    """Open the stored features in a folder, if one is given, and check that they cover all images."""
    if folder is None:
        return data
    store = FeatureStore(folder)
    for images in (data.train, data.evaluation):
        if isinstance(images, ShardStream):
            raise UserError("--features cannot be used with a stream: give the images.")
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

    def sampler(self, images: CaptionedImages) -> ImageBatchSampler:
        """Return the sampler that divides images, in their order, among the processes."""
        return ImageBatchSampler(len(images), **self._shares(1), seed=self.args.seed, shuffle=False)

    def train_sampler(
        self, images: CaptionedImages | ShardStream, step: int, positions: list[Any] | None
    ) -> ImageBatchSampler | StreamSampler:
        """Return the sampler of the optimizer steps after `step`; of a stream, those after `positions`."""
        shares = self._shares(self.args.gradient_accumulation_steps)
        if isinstance(images, ShardStream):
            return StreamSampler(images, **shares, positions=positions)
        return ImageBatchSampler(len(images), **shares, seed=self.args.seed, start_step=step)

    def _shares(self, accumulation_steps: int) -> dict[str, Any]:
        return {
            "per_device_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": accumulation_steps,
            "num_processes": self.accelerator.num_processes,
            "process_index": self.accelerator.process_index,
        }

    def loader(
        self,
        images: CaptionedImages | ShardStream,
        batches: Iterable[list[SampleKey]],
        captions_per_image: int,
        augmentation: Sequence[str] = (),
        collate: Any = None,
    ) -> DataLoader:
        """Return a data loader over batches of keys of `images`, by default collated for the captioner."""
        records = () if isinstance(images, ShardStream) else images
        inputs = self.inputs(augmentation)
        max_tokens, seed = self.args.max_caption_tokens, self.args.seed
        return DataLoader(
            CaptionDataset(records, inputs, self.processor, captions_per_image, max_tokens, seed),
            batch_sampler=batches,
            collate_fn=collate or Collator(inputs, self.processor),
            num_workers=usable_workers(self.args.dataloader_num_workers),
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=initialize_worker,
        )

    def log_unreadable(self, problems: Iterable[str]) -> None:
        """Log each error that was not logged before."""
        for text in problems:
            if text not in self.unreadable:
                self.unreadable.add(text)
                logger.warning("skipped: %s", text)

    def check_unreadable(self, count: int, total: int) -> None:
        """Stop the run if all images of a split are unreadable, or more than allowed.

        Args:
            count: How many could not be read, on all processes together.
            total: The number of images of the split.

        Raises:
            TrainingError: on the main process; OtherProcessError on the others.
        """
        share = self.args.max_unreadable_share
        allowed = allowed_unreadable(share, total)
        if count <= allowed:
            return
        example = min(self.unreadable, default="see the warnings above")
        message = (
            f"{count} of {total} images could not be read, and --max_unreadable_share {share} allows "
            f"{allowed} (for example: {example}). Repair the images or allow more."
        )
        raise_on_main(self.accelerator, TrainingError(message))
