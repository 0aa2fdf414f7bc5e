"""What a captioner was trained on, how and with what, as `training.json` beside it keeps it.

Nothing in it depends on the time, on the way to the data on a machine, or on whether a run was interrupted:
a run that was resumed leaves the same bytes as one that never stopped.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..captioner.json_ituning import parse_json

TRAINING_FILE = "training.json"
DRAWN_SCENES = "scenes that ituning_hf draws"  # what the built-in data set is called


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """A validation in the midst of training.

    Args:
        step: The optimizer step it followed.
        scores: "loss", and the scores of captions where some were scored, by the names that
            `compute_caption_metrics` gives them.
        num_scored: Images whose captions were scored.

    Raises:
        ValueError: for a value of another kind, naming it.
    """

    step: int
    scores: dict[str, float]
    num_scored: int

    def __post_init__(self) -> None:
        """Check every value's kind: the card formats them."""
        _check_kinds(self)
        if "loss" not in self.scores or not all(isinstance(x, (int, float)) for x in self.scores.values()):
            raise ValueError(f"scores is {self.scores!r}, expected numbers by name, 'loss' among them")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a captioner came about.

    Args:
        dataset: The data set's name: the last part of its path, or its id on the Hub. None if the images were
            given in Python.
        dataset_on_hub: Whether it is such an id.
        num_train_images: Images that were trained on.
        eval_split: The split that was validated on, if any.
        num_eval_images: Images in it.
        step: Optimizer steps taken.
        epoch: Passes over the training images.
        settings: Every setting that shaped the run, by name; none is a place on a machine.
        validation: The validation after the last of those steps, if there was one.
        versions: Of Python and the libraries, by name.
        device: What it ran on.
        num_processes: On how many of them at a time.
        features: The numbers' form in the stored features that it was trained on, such as "bfloat16"; None if
            the vision encoder saw the images at each step.

    Raises:
        ValueError: for a value of another kind, naming it.
    """

    dataset: str | None
    dataset_on_hub: bool
    num_train_images: int
    eval_split: str | None
    num_eval_images: int
    step: int
    epoch: float
    settings: dict[str, Any]
    validation: ValidationRecord | None
    versions: dict[str, str]
    device: str
    num_processes: int
    features: str | None = None

    def __post_init__(self) -> None:
        """Check every value's kind: the card formats them."""
        _check_kinds(self)


def read_training_record(folder: str | os.PathLike[str]) -> TrainingRecord | None:
    """Read how a captioner came about; None if nothing is recorded.

    Args:
        folder: The captioner's.

    Raises:
        ValueError: if `training.json` there is not what `write_training_record` writes.
    """
    path = Path(folder) / TRAINING_FILE
    if not path.exists():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content["validation"] is not None:
            content["validation"] = ValidationRecord(**content["validation"])
        return TrainingRecord(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no record of a training ({error}): copy it again, or remove it."
        ) from error


def write_training_record(folder: str | os.PathLike[str], record: TrainingRecord) -> None:
    """Write how a captioner came about.

    Args:
        folder: The captioner's.
        record: What is known of it.
    """
    text = json.dumps(asdict(record), indent=2, sort_keys=True, ensure_ascii=False)
    (Path(folder) / TRAINING_FILE).write_text(text + "\n", encoding="utf-8")


def _check_kinds(record: Any) -> None:
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not isinstance(value, dict if get_origin(kind) is dict else kind):
            raise ValueError(f"{name} is {value!r}, expected {kind}")
