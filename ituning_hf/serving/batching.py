"""Caption the images of concurrent requests in batches, in one thread."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..inference.captioning import decode_captions, generate_ids
from .captioners import Captioner


class Search(NamedTuple):
    """The settings of a search, which must be equal for all images of a batch."""

    num_captions: int
    num_beams: int
    max_new_tokens: int


class Caption(NamedTuple):
    """A caption, the number of its tokens without prompt and end, and whether it ended before the limit."""

    text: str
    num_tokens: int
    is_complete: bool

    def words(self) -> list[str]:
        """Return the words with the whitespace before them: the parts of a streamed answer."""
        return re.findall(r"\s*\S+", self.text)

    @property
    def finish_reason(self) -> str:
        """Why the caption ends, as OpenAI and Ollama name it."""
        return "stop" if self.is_complete else "length"


@dataclass(frozen=True, eq=False)
class Job:
    """An image to caption.

    Args:
        captioner: The captioner.
        pixel_values: The prepared image, of shape (1, 3, image_size, image_size).
        prompt: The beginning of the captions, or None.
        search: The settings of the search.
    """

    captioner: Captioner
    pixel_values: torch.Tensor
    prompt: str | None
    search: Search
    captions: Future[list[Caption]] = field(default_factory=Future)

    def fits(self, other: Job) -> bool:
        """Return whether two jobs can be in one batch."""
        same = self.captioner is other.captioner and self.search == other.search
        return same and (self.prompt is None) == (other.prompt is None)


class Batcher:
    """Runs jobs in batches, the oldest first, in a thread of its own.

    An idle batcher waits for more jobs after the first; a busy one then takes all that have arrived. If a
    batch fails, its jobs run alone, so that only those at fault fail. Cancelled jobs are skipped.

    Args:
        max_batch: The most images in a batch.
        max_wait: The time that an idle batcher waits for more jobs, in seconds.
        on_batch: Called with the number of images of each batch.
    """

    def __init__(self, max_batch: int, max_wait: float, on_batch: Callable[[int], object]) -> None:
        self.max_batch, self.max_wait, self.on_batch = max_batch, max_wait, on_batch
        self._waiting: list[Job] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="caption-batches", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """The number of jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> Future[list[Caption]]:
        """Add a job, and return the future of its captions, the most likely first.

        Raises:
            RuntimeError: The batcher was closed.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher was closed")
            self._waiting = [other for other in self._waiting if not other.captions.cancelled()] + [job]
            self._changed.notify()
        return job.captions

    def close(self) -> None:
        """Finish the jobs that wait, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            if batch := [job for job in batch if job.captions.set_running_or_notify_cancel()]:
                self.on_batch(len(batch))
                _caption(batch)

    def _next_batch(self) -> list[Job]:
        """Wait for jobs; return the oldest and those that fit it, or none if the batcher was closed."""
        with self._changed:
            if not self._waiting:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                end = time.monotonic() + self.max_wait
                while len(self._waiting) < self.max_batch and not self._is_closed:
                    if not self._changed.wait(end - time.monotonic()):
                        break
            batch = [job for job in self._waiting if job.fits(self._waiting[0])][: self.max_batch]
            self._waiting = [job for job in self._waiting if job not in batch]
            return batch


def _caption(batch: list[Job]) -> None:
    try:
        results = _generate(batch)
    except Exception as error:
        if len(batch) == 1:
            batch[0].captions.set_exception(error)
        else:
            for job in batch:
                _caption([job])
    else:
        for job, captions in zip(batch, results, strict=True):
            job.captions.set_result(captions)


def _generate(batch: list[Job]) -> list[list[Caption]]:
    captioner, search = batch[0].captioner, batch[0].search
    model, processor = captioner.model, captioner.processor
    inputs = {"pixel_values": torch.cat([job.pixel_values for job in batch])}
    num_prompt_tokens = 1  # BOS
    if prompts := [job.prompt for job in batch if job.prompt is not None]:  # all of them have one, or none
        inputs |= processor(text=prompts, return_tensors="pt")
        num_prompt_tokens = inputs["input_ids"].shape[1]
    options: dict[str, Any] = {"num_return_sequences": search.num_captions, "num_beams": search.num_beams}
    ids = generate_ids(model, inputs, options | {"max_new_tokens": search.max_new_tokens}).cpu()
    eos = torch.tensor(model.generation_config.eos_token_id).flatten()
    is_end = torch.isin(ids[:, num_prompt_tokens:], eos)  # (rows, new tokens)
    num_tokens = (is_end.cumsum(dim=1) == 0).sum(dim=1).tolist()
    complete = is_end.any(dim=1).tolist()
    captions = [*map(Caption, decode_captions(processor, ids), num_tokens, complete)]
    n = search.num_captions
    return [captions[i : i + n] for i in range(0, len(captions), n)]
