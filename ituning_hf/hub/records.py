"""The records stored with a captioner: `training.json` and `evaluation.json`.

A training record holds no time, no path of a machine and no trace of interruptions: a resumed run writes the
same bytes as an uninterrupted one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..utils.errors import UserError
from ..utils.files import read_json, write_json

TRAINING_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"

DRAWN_SCENES = "scenes that ituning_hf draws"  # the name of the built-in scenes in `TrainingRecord`


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """A validation during training."""

    step: int  # it ran after this optimizer step
    scores: dict[str, float]  # "loss", and caption scores by the names of `compute_caption_metrics`
    num_scored: int  # images with scored captions


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a captioner was trained."""

    dataset: str | None  # the last part of its path, or its Hub id; None for images passed in Python
    dataset_on_hub: bool  # whether `dataset` is a Hub id
    num_train_images: int | None  # None for tar shards of an unknown number
    eval_split: str | None
    num_eval_images: int
    step: int  # optimizer steps
    epoch: int | float | None  # passes over the training images, if their number is known
    settings: dict[str, Any]  # the settings that shaped the run, without paths
    validation: ValidationRecord | None  # after the last step, if it ran
    versions: dict[str, str]  # of Python and the libraries
    device: str
    num_processes: int
    features: str | None = None  # the number format of stored features that replaced the vision encoder


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """The scores of a captioner on a dataset."""

    dataset: str  # its name, or its Hub id
    split: str
    num_images: int  # scored images
    metrics: dict[str, float]  # as `compute_caption_metrics` returns them; empty if nothing was measured yet
    command: str = ""  # the command that computed them, in one line, without paths of a machine
    subset: str | None = None  # a part of the split, such as the NoCaps domain "out-domain"
    tokenizer: str | None = None  # "PTB (Java)" or "Python": what split the captions into words
    num_unreadable: int = 0  # images that could not be read and have no score

    @property
    def part(self) -> str:
        """The split, with the subset if there is one."""
        return f"{self.split}, {self.subset}" if self.subset else self.split


def read_training_record(folder: str | os.PathLike[str]) -> TrainingRecord | None:
    """Read `training.json` in a captioner's folder; None without it.

    Raises:
        UserError: if the file is not a training record.
    """

    def build(content: dict[str, Any]) -> TrainingRecord:
        validation = content["validation"] and _build(ValidationRecord, content["validation"])
        return _build(TrainingRecord, content | {"validation": validation})

    return _read(Path(folder) / TRAINING_FILE, build)


def write_training_record(folder: str | os.PathLike[str], record: TrainingRecord) -> None:
    """Write `training.json` into a captioner's folder."""
    write_json(Path(folder) / TRAINING_FILE, asdict(record))


def read_evaluation_records(folder: str | os.PathLike[str]) -> list[EvaluationRecord]:
    """Read `evaluation.json` in a captioner's folder; an empty list without it.

    Raises:
        UserError: if the file does not hold evaluation records.
    """
    path = Path(folder) / EVALUATION_FILE
    return _read(path, lambda content: [_build(EvaluationRecord, record) for record in content]) or []


def write_evaluation_records(folder: str | os.PathLike[str], records: Sequence[EvaluationRecord]) -> None:
    """Write `evaluation.json` into a captioner's folder, in the order that the model card shows."""
    write_json(Path(folder) / EVALUATION_FILE, [asdict(record) for record in records])


def _build(kind: type[Any], content: dict[str, Any]) -> Any:
    record = kind(**content)
    for name, hint in get_type_hints(kind).items():
        if not _fits(value := getattr(record, name), hint):
            raise TypeError(f"{name!r} is {value!r}")
    return record


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(hint)[1]) for item in value.values())
    return hint is Any or isinstance(value, (int, float) if hint is float else hint)


def _read(path: Path, build: Callable[[Any], Any]) -> Any:
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return build(content)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be used ({error}): correct it or remove it.") from error
