"""The order of the images: independent of the number of processes, and resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .columns import CaptionedImage


class SampleKey(NamedTuple):
    """The key of an item of `CaptionDataset`."""

    epoch: int  # from 0; determines which captions of the image are used
    index: int  # type: ignore[assignment]  # of the image; hides tuple.index, which is not used here
    padding: bool  # whether the image only pads the last step of an epoch and must not count
    image: CaptionedImage | None = None  # of a stream; None for the image at the index of the dataset


@dataclass(eq=False)
class ImageBatchSampler(Sampler[list[SampleKey]]):
    """Yields the micro-batches of one process, endlessly, starting at any optimizer step.

    The order in an epoch is a pure function of (seed, epoch). An optimizer step takes the next

        global batch = per_device_batch_size * gradient_accumulation_steps * num_processes

    images, so equal global batch sizes give equal steps, however they are divided. The last step of an epoch
    is padded with images from the start of the epoch, so all processes have the same number of full
    micro-batches.
    """

    num_images: int  # in the dataset; at least 1
    per_device_batch_size: int  # images per micro-batch
    gradient_accumulation_steps: int  # micro-batches per optimizer step in one process
    num_processes: int  # that share each optimizer step
    process_index: int  # of this process, from 0
    seed: int  # of the order; 0 or more
    shuffle: bool = True  # otherwise every epoch has the order of the dataset
    start_step: int = 0  # optimizer steps already taken, counted over all epochs

    @property
    def step_shape(self) -> tuple[int, int, int]:
        """Micro-batches, processes, and images per micro-batch."""
        return self.gradient_accumulation_steps, self.num_processes, self.per_device_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, including the padded one."""
        return math.ceil(self.num_images / math.prod(self.step_shape))

    def next_position(self) -> None:
        """Return None: the number of steps is the position."""

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from self._micro_batches(epoch, step)
            epoch, step = epoch + 1, 0

    def _micro_batches(self, epoch: int, first_step: int) -> Iterator[list[SampleKey]]:
        """Yield the micro-batches of an epoch, starting at `first_step`."""
        shape = (self.steps_per_epoch, *self.step_shape)
        positions = np.arange(math.prod(shape))
        padding = (positions >= self.num_images).reshape(shape)
        indices = np.resize(self._order(epoch), shape)  # repeats from the start to pad
        for step in range(first_step, self.steps_per_epoch):
            for micro_step in range(shape[1]):
                batch = (step, micro_step, self.process_index)
                pairs = zip(indices[batch].tolist(), padding[batch].tolist(), strict=True)
                yield [SampleKey(epoch, index, is_padding) for index, is_padding in pairs]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
