"""What a model leaves on disk."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Saved:
    """What one model left on disk, in bytes."""

    weights: int
    folder: int


def save(model: nn.Module, folder: Path) -> Saved:
    """Save a model as its users do: by `save_pretrained`, or without one what is trainable.

    Args:
        model: The model.
        folder: An empty folder.
    """
    if isinstance(model, (PreTrainedModel, PeftModel)):
        model.save_pretrained(str(folder))
    else:
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "model.safetensors")
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    weights = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    return Saved(weights, sum(sizes.values()))


def saved_bytes(model: nn.Module) -> Saved:
    """Save a model where it is removed again, and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        return save(model, Path(folder))
