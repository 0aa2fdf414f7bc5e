"""Caption the images of a split on one process or several.

The split is cut into batches before the processes share them. So a batch holds the same images for any number
of processes, and captions and scores are the same on the same kind of device. (In other batches an image's
numbers differ in the last digits, which can decide between two nearly equal beams.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..data.columns import CaptionedImages
from ..data.images import UnreadableImageError, allowed_unreadable
from ..data.inputs import FeatureInputs, ImageInputs, PixelInputs
from ..data.workers import initialize_worker, usable_workers
from ..features.store import FeatureStore
from ..inference.captioning import generate_captions, search_options
from ..utils.distributed import sync_errors
from ..utils.errors import WorkError
from ..utils.terminal import bar_interval
from .arguments import EvaluateArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioner:
    """A captioner, the inputs that it takes and its arguments of `generate`."""

    model: ITuningForCaptioning
    processor: ITuningProcessor
    inputs: ImageInputs
    options: dict[str, Any]

    @classmethod
    def load(cls, args: EvaluateArguments, images: CaptionedImages, device: torch.device) -> Captioner:
        """Load the captioner that the settings name, and the stored features if there are any."""
        store = None if args.features is None else FeatureStore(args.features)
        model, processor = args.load_captioner(device, load_vision_model=store is None)
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
        by_index: The captions, by the image's index in the split.
        unreadable: Why other images have none, by the same index.
        seconds: The time that captioning took, without reading images; over all processes.
    """

    by_index: dict[int, str] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0


def caption_images(
    captioner: Captioner,
    images: CaptionedImages,
    args: EvaluateArguments,
    accelerator: Accelerator,
) -> Captions:
    """Caption images on all processes, each of which must call it and gets all captions.

    A dry run captions the first batch.

    Raises:
        WorkError: More images are unreadable than the settings allow.
    """
    size = args.batch_size
    indices = range(len(images))[: size if args.dry_run else None]
    batches = [list(indices[start : start + size]) for start in indices[::size]]
    own = batches[accelerator.process_index :: accelerator.num_processes]
    loader: DataLoader[Any] = DataLoader(
        indices,  # type: ignore[arg-type]
        batch_sampler=own,
        collate_fn=partial(_read_images, images, captioner.inputs),
        num_workers=usable_workers(min(args.dataloader_num_workers, len(own))),
        worker_init_fn=initialize_worker,
    )
    found = Captions()
    with sync_errors(accelerator), logging_redirect_tqdm(), _progress_bar(own, accelerator) as bar:
        for tensors, unreadable in loader:
            found.unreadable |= unreadable
            for error in unreadable.values():
                logger.warning("left out: %s", error)
            _check_unreadable(found.unreadable, images, args)
            if tensors:
                started = time.perf_counter()
                inputs = {captioner.inputs.name: torch.stack(list(tensors.values()))}
                texts = generate_captions(captioner.model, captioner.processor, inputs, captioner.options)
                found.seconds += time.perf_counter() - started
                found.by_index.update(zip(tensors, (first for first, *_ in texts), strict=True))
            bar.update(len(tensors) + len(unreadable))
    parts = gather_object([found])
    unreadable = _merge(part.unreadable for part in parts)
    with sync_errors(accelerator):
        _check_unreadable(unreadable, images, args)
    return Captions(_merge(part.by_index for part in parts), unreadable, sum(part.seconds for part in parts))


def _merge(parts: Iterable[dict[int, str]]) -> dict[int, str]:
    return dict(sorted(item for part in parts for item in part.items()))


def _read_images(
    images: CaptionedImages, inputs: ImageInputs, indices: Sequence[int]
) -> tuple[dict[int, torch.Tensor], dict[int, str]]:
    """Return the inputs of images by index, and why others cannot be read."""
    tensors, unreadable = {}, {}
    for index in indices:
        try:
            tensors[index] = inputs.read(images[index], 0, index)
        except UnreadableImageError as error:
            unreadable[index] = str(error)
    return tensors, unreadable


def _check_unreadable(unreadable: dict[int, str], images: CaptionedImages, args: EvaluateArguments) -> None:
    share = args.max_unreadable_share if args.expected_images is None else 0
    allowed = allowed_unreadable(share, len(images))
    if len(unreadable) > allowed:
        setting = "--max_unreadable_share" if args.expected_images is None else "--expected_images"
        raise WorkError(
            f"{len(unreadable)} of {len(images)} images could not be read, and {setting} allows {allowed} "
            f"(one of them: {next(iter(unreadable.values()))}). Repair or remove them, or change the setting."
        )


def _progress_bar(batches: Sequence[list[int]], accelerator: Accelerator) -> tqdm:
    several = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    return tqdm(
        total=sum(map(len, batches)),
        unit="image",
        desc=f"captioning{several}",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
        mininterval=bar_interval(),
    )
