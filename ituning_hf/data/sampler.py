"""The order of the images: the same for any number of processes, and resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """The key of an item of `CaptionDataset`."""

    epoch: int  # from 0; determines which captions of the image are used
    index: int  # type: ignore[assignment]  # of the image; hides tuple.index, which is not needed here
    padding: bool  # whether the image only fills up an epoch's last step and must not count


class ImageBatchSampler(Sampler[list[SampleKey]]):
    """Yields one process's micro-batches, endlessly, from any optimizer step on.

    An epoch's order is a pure function of (seed, epoch). An optimizer step takes the next

        global batch = per_device_batch_size * gradient_accumulation_steps * num_processes

    images of it, so that equal global batches give equal steps, however they are divided. The last step of an
    epoch is filled up with images from the epoch's start, marked as padding, so that all processes have the
    same number of full micro-batches.

    Args:
        num_images: In the data set; at least 1.
        per_device_batch_size: Images in a micro-batch.
        gradient_accumulation_steps: Micro-batches of one process in an optimizer step.
        num_processes: The number of processes that share each optimizer step.
        process_index: The index of this process, from 0.
        seed: Seed of the order; 0 or more.
        shuffle: False keeps the data set's order in every epoch.
        start_step: Optimizer steps already taken, counted over all epochs.
    """

    def __init__(
        self,
        num_images: int,
        per_device_batch_size: int,
        gradient_accumulation_steps: int,
        num_processes: int,
        process_index: int,
        seed: int,
        shuffle: bool = True,
        start_step: int = 0,
    ) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.start_step = start_step
        self.process_index = process_index
        self.step_shape = (gradient_accumulation_steps, num_processes, per_device_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, including the one that is filled up."""
        return math.ceil(self.num_images / math.prod(self.step_shape))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from self._micro_batches(epoch, step)
            epoch, step = epoch + 1, 0

    def _micro_batches(self, epoch: int, first_step: int) -> Iterator[list[SampleKey]]:
        """Yield the rest of an epoch from `first_step` on."""
        shape = (self.steps_per_epoch, *self.step_shape)
        positions = np.arange(math.prod(shape))
        padding = (positions >= self.num_images).reshape(shape)
        indices = np.resize(self._order(epoch), shape)  # repeats from the start to fill up
        for step in range(first_step, self.steps_per_epoch):
            for micro_step in range(shape[1]):
                batch = (step, micro_step, self.process_index)
                pairs = zip(indices[batch].tolist(), padding[batch].tolist(), strict=True)
                yield [SampleKey(epoch, index, is_padding) for index, is_padding in pairs]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
