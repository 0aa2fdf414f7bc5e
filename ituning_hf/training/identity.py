"""The identity of a run: compared when a checkpoint is resumed, and recorded with saved captioners."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .._version import __version__
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..data.hf_datasets import is_hub_name
from ..hub.records import DRAWN_SCENES, TrainingRecord, ValidationRecord
from ..utils.devices import device_name, library_versions
from ..utils.errors import UserError
from .arguments import ObjectiveArguments, TrainArguments
from .data import TrainingData

GIVEN_DATA = "(given in Python)"  # the dataset's name in `run.json` if images were passed in Python

# Settings that a resumed run may change. Backbones and features are identified by their fingerprints.
_FREE_SETTINGS = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "dataloader_num_workers",
        "checkpointing_steps",
        "vision_model",
        "text_model",
        "features",
        "max_checkpoints",
        "report_to",
        "dry_run",
        "preset",  # the options that it sets are compared
        "expected_train_images",
        "expected_eval_images",
        "max_unreadable_share",
    }
)


_PARTS_OF_THE_GLOBAL_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def run_identity(
    args: TrainArguments, model: ITuningForCaptioning, data: TrainingData, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what a checkpoint must have in common with a run that resumes from it."""
    settings = {name: value for name, value in args.to_dict().items() if name not in _FREE_SETTINGS}
    settings["vision_feature_layer"] = model.config.vision_feature_layer  # features may have chosen it
    settings["vision_feature_norm"] = model.config.vision_feature_norm  # runs of older versions had none
    settings["mixed_precision"] = accelerator.mixed_precision  # `accelerate config` may have chosen it
    return {
        "settings": _with_absolute_paths(settings, "init_from", "dataset", "image_root"),
        "global_batch_size": accelerator.num_processes
        * args.per_device_train_batch_size
        * args.gradient_accumulation_steps,
        "num_images": data.num_train_images,
        "data_fingerprint": data.fingerprint(),
        "image_features": data.describe_features(),
        "vision_model_fingerprint": model.config.vision_model_fingerprint,
        "text_model_fingerprint": model.config.text_model_fingerprint,
    }


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity with the settings, named as flags, among the other values."""
    settings = {f"--{name}": value for name, value in identity["settings"].items()}
    return {name: value for name, value in identity.items() if name != "settings"} | settings


def run_description(args: TrainArguments, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `run.json`: the identity, with all settings that repeat the run."""
    excluded = ("output_dir", "resume_from_checkpoint", "dry_run")
    settings = {name: value for name, value in args.to_dict().items() if name not in excluded}
    settings = _with_absolute_paths(settings, "vision_model", "text_model", "features")
    return identity | {"settings": settings | identity["settings"], "ituning_hf": __version__}


def check_same_run(saved: dict[str, Any], identity: dict[str, Any], checkpoint: Path) -> None:
    """Raise a UserError if a checkpoint's identity differs from this run's; it lists every difference.

    The global batch size must be equal, but it may be divided among another number of processes.
    """
    was, now = _flat(saved), _flat(identity)
    for name in _PARTS_OF_THE_GLOBAL_BATCH:
        del now[f"--{name}"]
    changed = [f"{name} {was.get(name)!r}, now {now[name]!r}" for name in now if was.get(name) != now[name]]
    hint = ""
    if was.get("global_batch_size") != now["global_batch_size"]:
        parts = " x ".join(f"--{name}" for name in _PARTS_OF_THE_GLOBAL_BATCH)
        hint = f" The global batch size is {parts} x the number of processes."
    if changed:
        raise UserError(
            f"{checkpoint} belongs to a run with other models, data or settings: it had "
            f"{'; '.join(changed)}. Resume with the same, or start a new run in another --output_dir.{hint}"
        )


def training_record(
    identity: dict[str, Any],
    data: TrainingData,
    step: int,
    epoch: float | None,
    validation: dict[str, Any] | None,
    accelerator: Accelerator,
) -> TrainingRecord:
    """Return the content of `training.json`; an interruption of the run does not change it.

    `epoch` is `step` in passes over the training images, None if their number is not known; `validation` is
    the last `ValidationRecord` as a dict.
    """
    settings = dict(identity["settings"])
    dataset = settings.pop("dataset")
    unused = ["image_root", "val_share" if dataset == "scenes" else "num_scenes"]  # the first is a path
    if settings["objective"] == "cross_entropy":
        unused += [field.name for field in fields(ObjectiveArguments) if field.name != "objective"]
    for name in unused:
        settings.pop(name)
    # A path on this machine means nothing elsewhere: its last part is enough.
    names: dict[str, str | None] = {GIVEN_DATA: None, "scenes": DRAWN_SCENES}
    if settings["init_from"] and os.path.isabs(settings["init_from"]):
        settings["init_from"] = "/".join(Path(settings["init_from"]).parts[-2:])  # such as "cc3m/best"
    shown = names.get(dataset, os.path.basename(dataset) if os.path.isabs(dataset) else dataset)
    return TrainingRecord(
        dataset=shown,
        dataset_on_hub=shown == dataset and is_hub_name(dataset),
        num_train_images=data.num_train_images,
        eval_split=settings["eval_split"] if data.evaluation else None,
        num_eval_images=len(data.evaluation),
        step=step,
        epoch=epoch,
        settings=settings,
        features=None if data.features is None else data.features.spec.storage,
        validation=None if validation is None else ValidationRecord(**validation),
        versions=library_versions(),
        device=device_name(accelerator.device),
        num_processes=accelerator.num_processes,
    )


def _with_absolute_paths(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    """Make those of the named settings absolute that name an existing path."""
    paths = {name: settings[name] for name in names if settings[name] and os.path.exists(settings[name])}
    return settings | {name: os.path.abspath(path) for name, path in paths.items()}
