"""Caption a process's share of many images, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing, nullcontext
from typing import Any

import numpy as np

from ..data.records import clean_caption
from ..utils.ranks import Rank
from .captioning import CaptionResult, iter_captions
from .job import Job
from .pictures import Pictures


class Batches:
    """The batches of one process: every `rank.count`-th.

    Args:
        images: The images of all processes.
        size: Images in a batch.
        rank: This process.
        job: The job that records the captions, or None.

    Attributes:
        spans: The indices of the images of each batch that is not done.
        num_images: The number of this process's images.
        num_todo: The number of those that are not done.
        num_unreadable: The number of those that could not be read, so far.
    """

    def __init__(self, images: Pictures, size: int, rank: Rank, job: Job | None) -> None:
        self.images, self.size, self.rank, self.job = images, size, rank, job
        done = job.done() if job else {}
        mine = range(rank.index, -(-len(images) // size), rank.count)
        spans = {number: range(number * size, min(number * size + size, len(images))) for number in mine}
        self.spans = {number: span for number, span in spans.items() if number not in done}
        self.num_images, self.num_todo = sum(map(len, spans.values())), sum(map(len, self.spans.values()))
        self.num_unreadable = sum(done[number].num_unreadable for number in spans.keys() & done.keys())

    def caption(
        self, model: Any, processor: Any, **options: Any
    ) -> Generator[list[CaptionResult], None, None]:
        """Caption the batches that are not done, and yield each after it was recorded.

        Args:
            model: The captioner.
            processor: Its processor.
            **options: For `iter_captions`.

        Raises:
            WorkError: The captions cannot be written.
        """
        images = self.images.select(np.concatenate([np.arange(0), *self.spans.values()]))
        results = iter_captions(model, processor, images, batch_size=self.size, **options)
        with closing(results), self.job.recording(self.rank) if self.job else nullcontext() as record:
            for number, span in self.spans.items():
                batch = list(itertools.islice(results, len(span)))
                if record is not None:
                    record(number, [None if r.error else [*map(clean_caption, r.captions)] for r in batch])
                self.num_unreadable += sum(result.error is not None for result in batch)
                yield batch
