"""The order in which images are seen: the same for any number of processes, and resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What the data set is asked for.

    Args:
        epoch: Counted from 0; decides which captions of the image are taken.
        index: Of the image.
        padding: True where the image only fills up an epoch's last step, and must not count.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    padding: bool


class ImageBatchSampler(Sampler[list[SampleKey]]):
    """Yields one process's micro-batches, endlessly, from any optimizer step on.

    An epoch's order is a pure function of (seed, epoch). An optimizer step takes the next

        global batch = per_device_batch_size * gradient_accumulation_steps * num_processes

    images of it, so equal global batches mean equal steps, however they are divided. The last
    step of an epoch is filled up with images from the epoch's start, marked as padding, so that
    every process has full micro-batches and as many of them as the others.

    Args:
        num_images: In the data set.
        per_device_batch_size: Images in a micro-batch.
        gradient_accumulation_steps: Micro-batches of one process in an optimizer step.
        num_processes: How many processes share each optimizer step.
        process_index: Which of them this is, from 0.
        seed: Of the order; 0 or more.
        shuffle: False keeps the data set's order in every epoch.
        start_step: Optimizer steps already taken, counted over all epochs.

    Raises:
        ValueError: A count is below 1, or `process_index` is not below `num_processes`.
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
        counts = {
            "num_images": num_images,
            "per_device_batch_size": per_device_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "num_processes": num_processes,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be from 0 to {num_processes - 1}, got {process_index}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.start_step = start_step
        self.process_index = process_index
        self.step_shape = (gradient_accumulation_steps, num_processes, per_device_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the filled-up one included."""
        return math.ceil(self.num_images / math.prod(self.step_shape))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from self._micro_batches(epoch, step)
            epoch, step = epoch + 1, 0

    def _micro_batches(self, epoch: int, first_step: int) -> Iterator[list[SampleKey]]:
        """Yield what is left of an epoch from `first_step` on."""
        shape = (self.steps_per_epoch, *self.step_shape)
        positions = np.arange(math.prod(shape))
        padding = (positions >= self.num_images).reshape(shape)
        indices = np.resize(self._order(epoch), shape)  # repeats from the start to fill up
        for step in range(first_step, self.steps_per_epoch):
            for micro_step in range(shape[1]):
                place = (step, micro_step, self.process_index)
                pairs = zip(indices[place].tolist(), padding[place].tolist(), strict=True)
                yield [SampleKey(epoch, index, is_padding) for index, is_padding in pairs]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
