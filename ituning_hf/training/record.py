"""What a run tells of itself beside the captioners that it leaves."""

from __future__ import annotations

import os
import platform
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator

from .._version import __version__
from ..data.hf_datasets import is_hub_name
from ..training_record import DRAWN_SCENES, TrainingRecord, ValidationRecord
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
        versions=_versions(),
        device=_device_name(accelerator.device),
        num_processes=accelerator.num_processes,
    )


def _dataset_name(dataset: str) -> str | None:
    """Return what to call a data set: the way to it on this machine is nobody else's business."""
    if dataset == GIVEN_DATA:
        return None
    if dataset == "scenes":
        return DRAWN_SCENES
    return os.path.basename(dataset) if os.path.isabs(dataset) else dataset


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "ituning_hf": __version__,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type.upper()
