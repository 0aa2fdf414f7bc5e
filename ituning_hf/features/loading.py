"""Pictures, decoded and prepared for the encoder ahead of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessorPil

from ..captioner.processing_ituning import prepare_images
from ..data.images import UnreadableImageError
from ..data.records import CaptionedImage
from ..data.workers import ignore_stop_signals, usable_workers
from .pictures import Picture
from .plan import BuildPlan, cut


@dataclass(frozen=True)
class PictureBatch:
    """Some images of one shard.

    Args:
        names: The images'.
        pixel_values: Shape (num_images, 3, image_size, image_size); zeros where a picture cannot be read.
        pictures: What each picture is.
        reasons: Why it cannot be read, or None.
    """

    names: list[str]
    pixel_values: torch.Tensor
    pictures: list[Picture]
    reasons: list[str | None]


def load_pictures(plan: BuildPlan, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return what loads a plan's pictures, shard after shard.

    Batches are cut inside a shard, from its start: an image's batch depends on its shard alone.

    Args:
        plan: Which pictures.
        batch_size: The most images of a batch.
        num_workers: Processes that decode, at most as many as cores; 0 for none but this one.
    """
    batches = [batch for shard in plan.shards for batch in cut(shard, batch_size)]
    return DataLoader(
        _Batches(batches, plan.spec.image_processor, plan.spec.vision_config["image_size"]),
        batch_size=None,
        num_workers=usable_workers(num_workers),
        worker_init_fn=_quieten,
        generator=torch.Generator(),  # its own: nothing is drawn from the caller's
    )


def _quieten(worker_id: int) -> None:
    """Let a worker end when it is told to, and say nothing then.

    Its errors reach the process that it works for in other ways. What it would print is that this process,
    interrupted by a signal, has not fetched a batch that it was about to.
    """
    ignore_stop_signals(worker_id)
    sys.excepthook = lambda *error: None


class _Batches(Dataset[PictureBatch]):
    def __init__(
        self, batches: Sequence[Sequence[CaptionedImage]], settings: dict[str, Any], image_size: int
    ) -> None:
        self.batches = batches
        self.image_processor = CLIPImageProcessorPil.from_dict(settings)
        self.blank = torch.zeros(3, image_size, image_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PictureBatch:
        records = self.batches[index]
        pixels, reasons = zip(*map(self._prepare, records), strict=True)
        return PictureBatch(
            names=[record.name for record in records],
            pixel_values=torch.stack([self.blank if p is None else p for p in pixels]),
            pictures=[Picture.of(record) for record in records],
            reasons=list(reasons),
        )

    def _prepare(self, record: CaptionedImage) -> tuple[torch.Tensor | None, str | None]:
        try:
            image = record.load()
        except UnreadableImageError as error:
            return None, str(error)
        prepared = prepare_images(self.image_processor, [image], return_tensors="pt")
        return prepared["pixel_values"][0], None
