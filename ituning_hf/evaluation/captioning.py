"""Captioning a split on one process or several, each image once.

Batches are cut from the whole split first, and then divided among the processes. So a batch holds the same
images whatever the number of processes, every number in it comes from the same computation (in other
batches it could differ in its last digits, and a beam search that wavers between two words would tell), and
captions and scores are the same, given the same kind of device and the same `batch_size`. Images that cannot
be read leave their batch smaller and move no other.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.processing_ituning import ITuningProcessor
from ..data.images import UnreadableImageError
from ..data.inputs import ImageInputs
from ..data.records import CaptionedImage
from ..data.workers import ignore_stop_signals, usable_workers
from ..inference.captioning import generate_captions
from ..utils.distributed import one_fate
from .drafts import CaptionedBatch, Drafts
from .errors import EvaluationError

logger = logging.getLogger(__name__)

LOG_FILE_SECONDS = 60  # between two lines of the bar where nobody watches it
Item = tuple[int, torch.Tensor | None, str]


class PreparedImages(Dataset[Item]):
    """The images of a split as the captioner takes them, read when asked for.

    An item is an image's place, its tensor or None, and why it could not be read.

    Args:
        images: The split.
        inputs: Pixels, or features in their place.
    """

    def __init__(self, images: Sequence[CaptionedImage], inputs: ImageInputs) -> None:
        self.images, self.inputs = images, inputs

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        try:
            return index, self.inputs.read(self.images[index], 0, index), ""
        except UnreadableImageError as error:  # one broken file must not end a long evaluation
            return index, None, str(error)


class SplitCaptioner:
    """Captions a split; every process has one.

    Args:
        model: The captioner, on its device.
        processor: Its processor.
        images: The split, as the captioner takes it.
        options: Of the search, for `generate`.
        batch_size: Images at a time.
        num_workers: Processes that read images; 0 reads in this one.
        max_unreadable: Images that may be unreadable.
    """

    def __init__(
        self,
        model: Any,
        processor: ITuningProcessor,
        images: PreparedImages,
        options: dict[str, Any],
        batch_size: int,
        num_workers: int,
        max_unreadable: int,
    ) -> None:
        self.model, self.processor, self.images = model, processor, images
        self.options, self.num_workers, self.max_unreadable = options, num_workers, max_unreadable
        places = list(range(len(images)))
        self.batches = [places[start : start + batch_size] for start in places[::batch_size]]

    def run(self, accelerator: Accelerator, drafts: Drafts) -> list[CaptionedBatch]:
        """Caption what is left; every process must call it.

        Args:
            accelerator: Says how many processes share the batches.
            drafts: What was captioned before, and where more is kept.

        Returns:
            All batches in their order, on every process.

        Raises:
            EvaluationError: Too many images cannot be read.
        """
        done = {batch.number: batch for batch in gather_object(list(drafts.read().values()))}
        left = [number for number in range(len(self.batches)) if number not in done]
        own = left[accelerator.process_index :: accelerator.num_processes]
        new: list[CaptionedBatch] = []
        with one_fate(accelerator), drafts.open() as keep:
            self._caption(own, new, keep, accelerator)
        done |= {batch.number: batch for batch in gather_object(new)}
        with one_fate(accelerator):  # all know it, and one tells
            self._limit([problem for batch in done.values() for problem in batch.unreadable])
        return [done[number] for number in range(len(self.batches))]

    def caption_first_batch(self) -> CaptionedBatch:
        """Caption the first batch alone, reading in this process."""
        return self._caption_batch(0, [self.images[index] for index in self.batches[0]])

    def _caption(
        self,
        numbers: Sequence[int],
        new: list[CaptionedBatch],
        keep: Callable[[CaptionedBatch], None],
        accelerator: Accelerator,
    ) -> None:
        loader = DataLoader(
            self.images,
            batch_sampler=[self.batches[number] for number in numbers],
            collate_fn=list,
            num_workers=usable_workers(min(self.num_workers, len(numbers))),
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # its own: nothing is drawn from anybody else's
        )
        with logging_redirect_tqdm(), _bar(sum(len(self.batches[n]) for n in numbers), accelerator) as bar:
            for number, items in zip(numbers, loader, strict=True):
                batch = self._caption_batch(number, items)
                keep(batch)
                new.append(batch)
                self._limit([problem for done in new for problem in done.unreadable])
                bar.update(len(items))

    def _caption_batch(self, number: int, items: Sequence[Item]) -> CaptionedBatch:
        unreadable = [(index, error) for index, tensor, error in items if tensor is None]
        for _, error in unreadable:
            logger.warning("left out: %s", error)
        readable = [(index, tensor) for index, tensor, _ in items if tensor is not None]
        if not readable:
            return CaptionedBatch(number, [], unreadable, 0.0)
        started = time.perf_counter()
        inputs = {self.images.inputs.name: torch.stack([tensor for _, tensor in readable])}
        # Their texts are at hand only when a GPU has finished.
        found = generate_captions(self.model, self.processor, inputs, self.options)
        seconds = time.perf_counter() - started
        captions = [(index, texts[0]) for (index, _), texts in zip(readable, found, strict=True)]
        return CaptionedBatch(number, captions, unreadable, seconds)

    def _limit(self, unreadable: Sequence[tuple[int, str]]) -> None:
        if len(unreadable) > self.max_unreadable or len(unreadable) == len(self.images):
            raise EvaluationError(
                f"{len(unreadable)} of {len(self.images)} images could not be read, and "
                f"--max_unreadable_share allows {self.max_unreadable} (one of them: {unreadable[0][1]}). "
                "Mend them, or raise it."
            )


def _bar(total: int, accelerator: Accelerator) -> tqdm:
    several = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    return tqdm(
        total=total,
        unit="image",
        desc=f"captioning{several}",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_SECONDS,
    )
