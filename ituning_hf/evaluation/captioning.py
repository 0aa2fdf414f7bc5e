"""Caption the images of a split on one process or several.

The whole split is cut into batches before the processes share them. So a batch holds the same images for
any number of processes, and captions and scores are the same on the same kind of device. (In batches of other
images the last digits differ, which can decide between two nearly equal beams.)
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.processing_ituning import ITuningProcessor
from ..data.images import UnreadableImageError
from ..data.inputs import FeatureInputs, ImageInputs, PixelInputs
from ..data.records import CaptionedImage
from ..data.workers import ignore_stop_signals, usable_workers
from ..features.store import FeatureStore
from ..inference.captioning import generate_captions, search_options
from ..inference.loading import load_model, load_processor
from ..utils.distributed import sync_errors
from ..utils.errors import WorkError
from .arguments import EvaluateArguments

logger = logging.getLogger(__name__)

LOG_FILE_SECONDS = 60  # between two updates of the progress bar in a log file
Item = tuple[int, torch.Tensor | None, str]


@dataclass(frozen=True)
class Captioner:
    """A captioner with the inputs and options of its captions."""

    model: Any
    processor: ITuningProcessor
    inputs: ImageInputs
    options: dict[str, Any]

    @classmethod
    def load(
        cls, args: EvaluateArguments, images: Sequence[CaptionedImage], device: torch.device
    ) -> Captioner:
        """Load the captioner of the settings, and its features of the images if they are stored.

        Raises:
            UserError, OSError: The captioner or the features cannot be used.
        """
        assert args.model is not None
        store = None if args.features is None else FeatureStore(args.features)
        options: dict[str, Any] = {
            "revision": args.revision,
            "dtype": args.dtype,
            "quantization": args.quantization,
            "vision_model_name_or_path": args.vision_model,
            "text_model_name_or_path": args.text_model,
            "load_vision_model": None if store is None else False,
        }
        given = {name: value for name, value in options.items() if value is not None}
        model = load_model(args.model, device, **given)
        processor = load_processor(args.model, args.revision)
        inputs: ImageInputs = PixelInputs(processor.image_processor)
        if store is not None:
            store.require(images)
            store.require_fits(model.config, processor.image_processor.to_dict())
            inputs = FeatureInputs(store)
        search = search_options(model, 1, args.num_beams, args.max_new_tokens, {})
        return cls(model, processor, inputs, search)


@dataclass
class Captions:
    """The captions of a split.

    Attributes:
        by_index: The captions by index of the image in the split.
        unreadable: The reasons why other images have none, likewise.
        seconds: The time that captioning took, without reading images; over all processes.
    """

    by_index: dict[int, str]
    unreadable: dict[int, str]
    seconds: float


def caption_images(
    captioner: Captioner,
    images: Sequence[CaptionedImage],
    args: EvaluateArguments,
    accelerator: Accelerator,
) -> Captions:
    """Caption images; every process must call it.

    Returns:
        The captions of all images, on every process.

    Raises:
        WorkError: More images are unreadable than the settings allow.
    """
    indices, size = list(range(len(images))), args.batch_size
    batches = [indices[start : start + size] for start in indices[::size]]
    own = batches[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(
        _Inputs(images, captioner.inputs),
        batch_sampler=own,
        collate_fn=list,
        num_workers=usable_workers(min(args.dataloader_num_workers, len(own))),
        worker_init_fn=ignore_stop_signals,
    )
    found = Captions({}, {}, 0.0)
    with sync_errors(accelerator), logging_redirect_tqdm(), _progress_bar(own, accelerator) as bar:
        for items in loader:
            _caption_batch(captioner, items, found)
            _check_unreadable(found.unreadable, images, args)
            bar.update(len(items))
    parts: list[Captions] = gather_object([found])
    by_index = {index: text for part in parts for index, text in part.by_index.items()}
    unreadable = {index: error for part in parts for index, error in part.unreadable.items()}
    with sync_errors(accelerator):
        _check_unreadable(unreadable, images, args)
    seconds = sum(part.seconds for part in parts)
    return Captions(dict(sorted(by_index.items())), dict(sorted(unreadable.items())), seconds)


def _caption_batch(captioner: Captioner, items: Sequence[Item], found: Captions) -> None:
    for index, tensor, error in items:
        if tensor is None:
            logger.warning("left out: %s", error)
            found.unreadable[index] = error
    readable = {index: tensor for index, tensor, _ in items if tensor is not None}
    if readable:
        started = time.perf_counter()
        inputs = {captioner.inputs.name: torch.stack(list(readable.values()))}
        texts = generate_captions(captioner.model, captioner.processor, inputs, captioner.options)
        found.seconds += time.perf_counter() - started
        found.by_index.update(zip(readable, (first for first, *_ in texts), strict=True))


def _check_unreadable(
    unreadable: dict[int, str], images: Sequence[CaptionedImage], args: EvaluateArguments
) -> None:
    allowed = 0 if args.expected_images is not None else int(args.max_unreadable_share * len(images))
    if len(unreadable) > allowed or len(unreadable) == len(images):
        setting = "--max_unreadable_share" if args.expected_images is None else "--expected_images"
        raise WorkError(
            f"{len(unreadable)} of {len(images)} images could not be read, and {setting} allows {allowed} "
            f"(one of them: {next(iter(unreadable.values()))}). Repair or remove them, or change the setting."
        )


class _Inputs(Dataset[Item]):
    """The captioner's inputs: each image's index, its tensor or None, and why it could not be read."""

    def __init__(self, images: Sequence[CaptionedImage], inputs: ImageInputs) -> None:
        self.images, self.inputs = images, inputs

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        try:
            return index, self.inputs.read(self.images[index], 0, index), ""
        except UnreadableImageError as error:
            return index, None, str(error)


def _progress_bar(batches: Sequence[list[int]], accelerator: Accelerator) -> tqdm:
    several = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    return tqdm(
        total=sum(map(len, batches)),
        unit="image",
        desc=f"captioning{several}",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_SECONDS,
    )
