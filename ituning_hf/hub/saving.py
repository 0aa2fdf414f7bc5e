"""Saves a captioner, its processor, its code and its model card to one folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_NAME

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..utils.errors import UserError
from ..utils.files import give_ordinary_permissions
from .card import write_card
from .records import EVALUATION_FILE, TRAINING_FILE, TrainingRecord, write_training_record


def save_captioner(
    model: ITuningForCaptioning,
    processor: ITuningProcessor,
    folder: str | os.PathLike[str],
    *,
    training: TrainingRecord | None = None,
) -> None:
    """Save the adapter, its processor, the code that loads both without this package, and a model card.

    A model card that a person wrote or edited is not overwritten. Records of other weights in the folder,
    `training.json` and `evaluation.json`, are removed.

    Args:
        model: The captioner; only the adapter's weights are written.
        processor: Its processor.
        folder: The folder; created if it does not exist.
        training: How the captioner was trained; becomes `training.json` and part of the card.

    Raises:
        ValueError: if the captioner has a PEFT adapter, or a backbone was changed after loading.
    """
    if getattr(model, "peft_config", None):
        raise UserError(
            "The captioner has a PEFT adapter, which would not be saved: save it with "
            "model.save_pretrained(folder), or see docs/peft.md on how to merge it."
        )
    weights = Path(folder) / SAFE_WEIGHTS_NAME
    before = _digest(weights)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    give_ordinary_permissions(weights)
    if _digest(weights) != before:
        for name in (TRAINING_FILE, EVALUATION_FILE):
            (Path(folder) / name).unlink(missing_ok=True)
    if training is not None:
        write_training_record(folder, training)
    write_card(folder)


def _digest(path: Path) -> bytes | None:
    return hashlib.sha256(path.read_bytes()).digest() if path.exists() else None


__all__ = ["save_captioner"]
