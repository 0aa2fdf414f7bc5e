"""How far a run has come, what makes it this run, and whether a checkpoint belongs to it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .._version import __version__
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..utils.json_files import parse_json
from .arguments import TrainArguments
from .checkpoints import STATE_FILE
from .setup import TrainingData

# What a resumed run may change without becoming another run. Backbones and features are known by fingerprint.
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
        "expected_train_images",
        "expected_eval_images",
        "max_unreadable_share",
    }
)


@dataclass
class TrainState:
    """What of a run's progress is not in the model, the optimizer or the random states.

    Args:
        step: Optimizer steps taken.
        unreadable: Images of this epoch that could not be read.
        best_metric: The best validation's `--metric_for_best_model`, None before the first validation.
        best_step: The step it was reached at.
        validations_without_better: How many came since the last one that counted as better.
        validation: The last one after a step, as a `ValidationRecord` by name; the captioner's card tells it.
    """

    step: int = 0
    unreadable: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_better: int = 0
    validation: dict[str, Any] | None = None

    def take_validation(self, value: float, lower_is_better: bool, threshold: float) -> bool:
        """Take account of a validation after the current step.

        Args:
            value: What it found.
            lower_is_better: Whether that is a loss.
            threshold: It must be better than the best before by more than this to count as better.

        Returns:
            Whether it is the best so far, by however little.
        """
        best = self.best_metric
        gain = math.inf if best is None else best - value if lower_is_better else value - best
        self.validations_without_better = 0 if gain > threshold else self.validations_without_better + 1
        if gain > 0:
            self.best_metric, self.best_step = value, self.step
        return gain > 0


def run_identity(
    args: TrainArguments, model: ITuningForCaptioning, data: TrainingData, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what makes a run this run; a checkpoint must agree with it to be resumed."""
    settings = {name: value for name, value in args.to_dict().items() if name not in _FREE_SETTINGS}
    settings["vision_feature_layer"] = model.config.vision_feature_layer  # features may have chosen it
    settings["mixed_precision"] = accelerator.mixed_precision  # `accelerate config` may have chosen it
    for name in ("dataset", "image_root"):
        if settings[name] is not None and os.path.exists(settings[name]):
            settings[name] = os.path.abspath(settings[name])
    return {
        "settings": settings,
        "num_processes": accelerator.num_processes,
        "num_images": len(data.train),
        "data_fingerprint": data.fingerprint(),
        "image_features": data.describe_features(),
        "vision_model_fingerprint": model.config.vision_model_fingerprint,
        "text_model_fingerprint": model.config.text_model_fingerprint,
        "ituning_hf": __version__,
    }


def run_record(args: TrainArguments, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what `run.json` says: the identity, and every setting that another run could be made from.

    Args:
        args: The settings.
        identity: What `run_identity` gave.
    """
    place = ("output_dir", "resume_from_checkpoint", "dry_run")
    settings = {name: value for name, value in args.to_dict().items() if name not in place}
    for name in ("vision_model", "text_model", "features"):
        if settings[name] is not None and os.path.exists(settings[name]):
            settings[name] = os.path.abspath(settings[name])
    return identity | {"settings": settings | identity["settings"]}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's own state: its progress and its run's identity.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return parse_json((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{checkpoint / STATE_FILE} is damaged ({error}): resume from another checkpoint."
        ) from error


def check_same_run(saved: dict[str, Any], own: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of other backbones or other settings.

    Args:
        saved: The checkpoint's state.
        own: This run's identity.
        checkpoint: Its folder, for the message.

    Raises:
        ValueError: with what differs.
    """
    for kind in ("vision", "text"):
        key = f"{kind}_model_fingerprint"
        if saved[key] != own[key]:
            raise ValueError(
                f"{checkpoint} was trained over another {kind} model (fingerprint {saved[key]}, this run's "
                f"is {own[key]}): give the same --{kind}_model."
            )
    if saved["data_fingerprint"] != own["data_fingerprint"]:
        raise ValueError(
            f"{checkpoint} was trained on other data: images or captions have changed since "
            f"({saved['num_images']} images to train on, now {own['num_images']}). Bring the data back, or "
            "start anew in another --output_dir."
        )
    _check_same_features(saved.get("image_features"), own["image_features"], checkpoint)
    changed = [
        f"--{name} {saved['settings'].get(name)!r}, now {value!r}"
        for name, value in own["settings"].items()
        if saved["settings"].get(name) != value
    ]
    if saved["num_processes"] != own["num_processes"]:
        changed.append(f"{saved['num_processes']} process(es), now {own['num_processes']}")
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings: it had {'; '.join(changed)}. Resume with "
            "the same, or start anew in another --output_dir."
        )


def _check_same_features(before: dict[str, str] | None, now: dict[str, str] | None, checkpoint: Path) -> None:
    if before != now:
        raise ValueError(
            f"{checkpoint} was trained on {_describe_images(before)}, and this run is on "
            f"{_describe_images(now)}, which gives other weights: resume with the same, or start anew in "
            "another --output_dir."
        )


def _describe_images(features: dict[str, str] | None) -> str:
    if features is None:
        return "the images themselves"
    return f"--features in {features['storage']} of fingerprint {features['fingerprint']}"
