"""What a run tells of itself beside the captioners that it leaves."""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator

from ..data.tables import is_hub_name
from ..hub.training_record import DRAWN_SCENES, TrainingRecord, ValidationRecord
from ..utils.environment import device_name, library_versions
from .setup import GIVEN_DATA, TrainingData
from .state import TrainState


def training_record(
    identity: dict[str, Any],
    data: TrainingData,
    state: TrainState,
    steps_per_epoch: int,
    accelerator: Accelerator,
) -> TrainingRecord:
    """Return how the captioner that a run has now came about.

    All of it comes from what a resumed run must have in common with its checkpoint, from the checkpoint, or
    from the installation, so that an interruption leaves no trace.

    Args:
        identity: What `run_identity` gave.
        data: The images.
        state: How far the run has come.
        steps_per_epoch: Optimizer steps in one pass over the training images.
        accelerator: Where it runs.
    """
    settings = dict(identity["settings"])
    dataset, _ = settings.pop("dataset"), settings.pop("image_root")
    settings.pop("val_share" if dataset == "scenes" else "num_scenes")  # of no use with the data at hand
    name = _dataset_name(dataset)
    return TrainingRecord(
        dataset=name,
        dataset_on_hub=name is not None and name == dataset and is_hub_name(name),
        num_train_images=len(data.train),
        eval_split=settings["eval_split"] if data.evaluation else None,
        num_eval_images=len(data.evaluation),
        step=state.step,
        epoch=state.step / steps_per_epoch,
        settings=settings,
        features=None if data.features is None else data.features.spec.storage,
        validation=None if state.validation is None else ValidationRecord(**state.validation),
        versions=library_versions(),
        device=device_name(accelerator.device),
        num_processes=accelerator.num_processes,
    )


def _dataset_name(dataset: str) -> str | None:
    """Return what to call a data set: the way to it on this machine is nobody else's business."""
    if dataset == GIVEN_DATA:
        return None
    if dataset == "scenes":
        return DRAWN_SCENES
    return os.path.basename(dataset) if os.path.isabs(dataset) else dataset
