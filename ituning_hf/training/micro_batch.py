"""A micro-batch as one process computed on it: kept so that the computation can be done again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

IMAGE_INPUTS = ("pixel_values", "visual_features")
_OWN = ("num_items_in_batch", "loss", "rng_state")  # beside what the captioner takes


@dataclass(frozen=True)
class MicroBatch:
    """What went into a loss, and the loss.

    Args:
        inputs: The captioner's arguments: tensors by name, images first.
        num_items: The label tokens that the summed loss was divided by.
        random_state: Of the device's generator before the computation: what dropout drew from.
        loss: What came out, without axes.
    """

    inputs: dict[str, torch.Tensor]
    num_items: int
    random_state: torch.Tensor
    loss: torch.Tensor

    def save(self, path: Path) -> None:
        """Write it to a safetensors file."""
        own = (torch.tensor(self.num_items), self.loss, self.random_state)
        tensors = self.inputs | dict(zip(_OWN, own, strict=True))
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> MicroBatch:
        """Read what `save` wrote.

        Raises:
            KeyError, OSError, SafetensorError: if the file is not that.
        """
        tensors = load_file(path)
        num_items, loss, random_state = (tensors.pop(name) for name in _OWN)
        return cls(tensors, int(num_items), random_state, loss)

    def compute(self, captioner: nn.Module, label_smoothing: float) -> torch.Tensor:
        """Compute the loss once more, from the same random state, on the captioner's device."""
        device = next(captioner.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        set_random_state(device, self.random_state)
        return captioner(**inputs, num_items_in_batch=self.num_items, label_smoothing=label_smoothing).loss

    def nonfinite_images(self) -> dict[str, list[int]]:
        """Return which images hold values that are NaN or infinite, by the input's name."""
        images = {name: self.inputs[name] for name in IMAGE_INPUTS if name in self.inputs}
        found = {name: (~tensor.flatten(1).isfinite()).any(1) for name, tensor in images.items()}
        return {name: mask.nonzero().flatten().tolist() for name, mask in found.items() if mask.any()}


def gradients(captioner: nn.Module, loss: torch.Tensor, factor: float) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss, times a factor, by the parameter's name; nothing is accumulated."""
    trainable = {name: p for name, p in captioner.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss * factor, list(trainable.values()))
    return dict(zip(trainable, found, strict=True))


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of a device's generator; it lies on the CPU, so that nothing waits for the device."""
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Take `random_state` back."""
    own: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    own.set_rng_state(state)
