"""From pictures to a store of their features."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.records import CaptionedImage
from ..utils.devices import usable_device
from ..utils.errors import WorkError
from ..utils.output_folders import held
from .encoder import Encoder, describe_encoder
from .loading import PictureBatch, load_pictures
from .plan import BuildPlan, plan_build
from .shards import ShardIndex, Unreadable, sweep_drafts, write_shard
from .spec import STORE_FILE, write_spec

logger = logging.getLogger(__name__)


class BuildError(WorkError):
    """A build cannot go on; what it wrote before is whole, and the same command goes on from there."""


@dataclass
class BuildResult:
    """What came of a build.

    Args:
        present: Images that the store had before.
        encoded: Images whose features were computed.
        num_bytes: What was written.
        seconds: What it took, from the first picture on.
        unreadable: Why pictures could not be read, by the images' names.
    """

    present: int
    encoded: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)


def build_features(
    records: Sequence[CaptionedImage],
    folder: str | os.PathLike[str],
    *,
    vision_model: str | os.PathLike[str],
    vision_revision: str | None = None,
    vision_feature_layer: int = -1,
    storage: str = "bfloat16",
    mixed_precision: str = "no",
    batch_size: int = 32,
    shard_size: int = 500,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    on_plan: Callable[[BuildPlan], None] = lambda plan: None,
    progress: bool = False,
) -> BuildResult:
    """Compute the features of images and store them, or add to a store those that it does not have.

    It can be ended at any time; called again it goes on, and the store's files are the same to the last byte
    as if nothing had happened. A picture that cannot be read is recorded as such and harms no other.

    Args:
        records: The images, of one or more splits.
        folder: The store's; made if it is not there.
        vision_model: A CLIP vision encoder, or a full CLIP: a local folder or a Hub id.
        vision_revision: Its revision on the Hub.
        vision_feature_layer: Which hidden state is taken; see `ITuningConfig`.
        storage: "bfloat16"; "int8", half as large (see `pack` for what is lost); or "float32".
        mixed_precision: "no", "bf16" or "fp16": what the encoder computes in.
        batch_size: Images encoded at a time. Another one may change features in their last bit.
        shard_size: Images of a file, and the most whose features are in memory at once.
        num_workers: Processes that decode pictures; 0 decodes in this one.
        device: Where the encoder computes; by default the best there is.
        on_plan: Called with what is to be done, before it is.
        progress: Whether to show a bar on standard error.

    Raises:
        ValueError, OSError: Nothing was begun: the encoder or a setting cannot be used, the store was made
            otherwise or has other pictures, another build is at work there, the disk is too small.
        BuildError: It could not go on, such as on a full disk.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batch_size is {batch_size} and num_workers {num_workers}, expected 1 and 0 or more"
        )
    target = usable_device(device)
    spec = describe_encoder(
        vision_model,
        vision_revision=vision_revision,
        vision_feature_layer=vision_feature_layer,
        storage=storage,
        mixed_precision=mixed_precision,
    )
    plan = plan_build(records, folder, spec, shard_size)  # refuses before anything is written
    plan.require_space()
    with held(plan.folder, str(plan.folder), "build"):
        sweep_drafts(plan.folder)
        plan = plan_build(records, folder, spec, shard_size)  # another build may just have ended
        on_plan(plan)
        if not (plan.folder / STORE_FILE).exists():
            write_spec(plan.folder, spec)
        if not plan.shards:
            return BuildResult(plan.present)
        encoder = Encoder(spec, target)
        return _build(plan, encoder, batch_size, num_workers, progress)


def _build(
    plan: BuildPlan, encoder: Encoder, batch_size: int, num_workers: int, progress: bool
) -> BuildResult:
    result, start = BuildResult(plan.present), time.monotonic()
    batches = iter(load_pictures(plan, batch_size, num_workers))
    bar = tqdm(total=plan.num_images, unit="image", disable=not progress)
    with bar, logging_redirect_tqdm() if progress else nullcontext():
        for shard in plan.shards:
            index, packed = ShardIndex(plan.spec.digest(), {}, {}), dict[str, dict[str, torch.Tensor]]()
            while len(index.pictures) + len(index.unreadable) < len(shard):
                batch = next(batches)
                _add(batch, index, packed, encoder)
                bar.update(len(batch.names))
            result.encoded += len(index.pictures)
            result.num_bytes += _write(plan, index, packed)
            result.unreadable |= {name: entry.reason for name, entry in index.unreadable.items()}
    result.seconds = time.monotonic() - start
    return result


def _add(batch: PictureBatch, index: ShardIndex, packed: dict[str, Any], encoder: Encoder) -> None:
    """Encode a batch; blank pictures stand in for unreadable ones, so that all others keep their places."""
    try:
        features = encoder(batch.pixel_values)
    except FloatingPointError as error:
        raise BuildError(f"among {batch.names[0]} and those after it: {error}") from error
    for position, name in enumerate(batch.names):
        picture, reason = batch.pictures[position], batch.reasons[position]
        if reason is None:
            index.pictures[name] = picture
            packed[name] = {kind: tensor[position] for kind, tensor in features.items()}
        else:
            index.unreadable[name] = Unreadable(picture, reason)
            logger.warning("skipped: %s", reason)


def _write(plan: BuildPlan, index: ShardIndex, packed: dict[str, Any]) -> int:
    try:
        return write_shard(plan.folder, index, packed).stat().st_size
    except OSError as error:
        raise BuildError(
            f"{plan.folder} could not be written to ({error.strerror or error}). What was written before is "
            "whole: make room or mend the folder's permissions, and go on by the same command."
        ) from error
