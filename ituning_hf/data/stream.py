"""Training on tar shards: an endless order of their images, which can be resumed at any optimizer step.

The shards are read in L lanes. In epoch e, lane l reads the shards l, l + L, l + 2 L, ... of a permutation
from (seed, e), one at a time, and the samples of a shard in the order of a permutation from (seed, e, shard).
Then it continues with epoch e + 1, however far the other lanes are, so shards may be of any size. An
optimizer step takes equally many images from each lane. Its position is three integers for each lane.

The order does not depend on the number of processes. Each takes an equal part of a step's images, lane by
lane: if their number divides L, each shard is read by one process, and otherwise some by several.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ..utils.errors import UserError, WorkError
from .columns import CaptionedImage, CaptionedImages
from .sampler import SampleKey
from .selection import random_number
from .shards import Shard, read_shards, select_shards

logger = logging.getLogger(__name__)

MAX_LANES = 16  # unless there are more processes: each lane holds the headers of two shards
_NUM_THREADS = 4  # that open shards ahead


class Position(NamedTuple):
    """How far a lane has been read."""

    epoch: int = 0
    turn: int = 0  # counts the shards that the lane reads in an epoch
    sample: int = 0  # the number of samples of the shard that were read or passed over


_Turn = tuple[Position, int, Future[Shard]]  # where to start in a shard, and the shard's number


@dataclass(frozen=True)
class ShardStream:
    """The training images of tar shards."""

    shards: Mapping[str, str]  # addresses by name, as `find_shards` returns them
    seed: int  # of the order and of the images left out for validation; 0 or more
    val_share: float  # of the images left out for validation; 0 if other shards are for validation
    num_images: int | None = None  # the stated length of an epoch

    def fingerprint(self) -> str:
        """Return a digest of the names of the shards and the sizes of local ones."""
        addresses = self.shards.values()
        sizes = [None if "://" in address else os.path.getsize(address) for address in addresses]
        return hashlib.sha256(json.dumps([list(self.shards), sizes]).encode()).hexdigest()[:16]

    def read_lane(
        self, lane: int, num_lanes: int, start: Position, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[SampleKey, Position]]:
        """Yield the images of a lane endlessly, each with the position after it.

        Images without captions, and those for validation, are passed over. A run of days does not end at bad
        data: of a damaged shard, the images before the damage are used; images with captions that cannot be
        read are left out. Each shard gets one warning.

        Args:
            lane: The lane's number.
            num_lanes: The number of lanes.
            start: The position to start from.
            pool: Opens the first shard at once, and each next one while its predecessor is read.

        Raises:
            WorkError: Shard after shard has no image to train on, or a shard cannot be downloaded.
            OSError: A shard cannot be read.
        """
        names = list(self.shards)
        turns = (
            (position, number, pool.submit(Shard, names[number], self.shards[names[number]]))
            for position, number in self._turns(lane, num_lanes, start)
        )
        first = iter([next(turns)])  # an iterator, because `chain` would keep a list, and its shard
        return self._read(pairwise(chain(first, turns)))

    def _turns(self, lane: int, num_lanes: int, start: Position) -> Iterator[tuple[Position, int]]:
        """Yield where to start in each shard of a lane, and the number of the shard."""
        position = start
        while True:
            rng = np.random.default_rng([self.seed, position.epoch])
            order = rng.permutation(len(self.shards))[lane::num_lanes].tolist()
            for turn in range(position.turn, len(order)):
                yield position, order[turn]
                position = Position(position.epoch, turn + 1)
            position = Position(position.epoch + 1)

    def _read(self, turns: Iterator[tuple[_Turn, _Turn]]) -> Iterator[tuple[SampleKey, Position]]:
        """Read the first shard of each pair, while the other is opened."""
        fruitless, most = 0, 10 * min(len(self.shards), 100)
        for ((epoch, turn, first), current, opening), _ in turns:
            shard = opening.result()
            fruitless += 1
            if shard.damage:
                logger.warning("%s; only its first %s images are used", shard.damage, len(shard))
            bad: list[str] = []
            order = np.random.default_rng([self.seed, epoch, current]).permutation(len(shard))
            for sample in range(first, len(order)):
                index = int(order[sample])
                if random_number(self.seed, shard.name_of(index)) < self.val_share:
                    continue
                try:
                    image = shard[index]
                except UserError as error:
                    bad.append(str(error))
                    continue
                if image.captions:
                    fruitless = 0
                    key = SampleKey(epoch, current << 32 | index, padding=False, image=image)
                    yield key, Position(epoch, turn, sample + 1)
            if bad:
                logger.warning("%s images of %s are left out, such as: %s", len(bad), shard.address, bad[0])
            if fruitless == most:
                raise WorkError(
                    f"{most} shards in a row, such as {shard.address}, have no image with a caption"
                )

    def validation_images(
        self, shards: Mapping[str, str], split: str, where: str, most: int
    ) -> CaptionedImages:
        """Read the first images of a split.

        Args:
            shards: All shards of the dataset.
            split: "val" or "test".
            where: The dataset, for messages.
            most: The number of images after which no more are read.

        Raises:
            UserError: There are none, or a shard is damaged.
        """
        selected, stated = select_shards(shards, split, where)
        images: Iterator[CaptionedImage] = filter(attrgetter("captions"), read_shards(selected, stated))
        if stated is None:
            drawn = (image for image in images if random_number(self.seed, image.name) < self.val_share)
            images = drawn if split == "val" else iter(())
        found = CaptionedImages.from_images(islice(images, most))
        if not found:
            raise UserError(f"{where} has no images of split {split!r}")
        return found


class StreamSampler(Sampler[list[SampleKey]]):
    """Yields the micro-batches of one process, endlessly, starting at any position of a stream.

    Args:
        stream: The images.
        per_device_batch_size: Images per micro-batch.
        gradient_accumulation_steps: Micro-batches per optimizer step in one process.
        num_processes: The number of processes that share each optimizer step.
        process_index: The index of this process, from 0.
        positions: Where each lane starts; by default, all lanes at the beginning.

    Attributes:
        positions: Of all lanes after the last step that `next_position` has accounted for.
    """

    def __init__(
        self,
        stream: ShardStream,
        per_device_batch_size: int,
        gradient_accumulation_steps: int,
        num_processes: int,
        process_index: int,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.stream, self.process_index = stream, process_index
        self.step_shape = (gradient_accumulation_steps, num_processes, per_device_batch_size)
        if positions is None:
            most = min(len(stream.shards), max(MAX_LANES, num_processes))
            global_batch = math.prod(self.step_shape)
            positions = [Position()] * max(n for n in range(1, most + 1) if global_batch % n == 0)
        self.positions = [Position(*position) for position in positions]
        self._read_ahead: deque[dict[int, Position]] = deque()  # after each step that was not taken yet

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, if the number of images is stated."""
        images = self.stream.num_images
        return None if images is None else math.ceil(images / math.prod(self.step_shape))

    def next_position(self) -> list[Position]:
        """Account for the next optimizer step, and return the positions of all lanes after it.

        A data loader reads ahead, but returns the batches in order. The lanes that this process does not
        read stay where they were at the start.
        """
        for lane, position in self._read_ahead.popleft().items():
            self.positions[lane] = position
        return self.positions

    def __iter__(self) -> Iterator[list[SampleKey]]:
        accumulation, num_processes, size = self.step_shape
        own = accumulation * size
        per_lane = own * num_processes // len(self.positions)
        first = self.process_index * own
        lanes = range(first // per_lane, math.ceil((first + own) / per_lane))
        skipped = first - lanes.start * per_lane  # images of the first lane that another process takes
        pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="shards")
        try:
            count, start = len(self.positions), self.positions
            readers = [self.stream.read_lane(lane, count, start[lane], pool) for lane in lanes]
            while True:
                images = [list(islice(reader, per_lane)) for reader in readers]
                self._read_ahead.append({lane: part[-1][1] for lane, part in zip(lanes, images, strict=True)})
                keys = [key for part in images for key, _ in part][skipped : skipped + own]
                for position in range(0, own, size):
                    yield keys[position : position + size]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
