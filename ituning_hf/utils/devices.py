"""Which device computes."""

from __future__ import annotations

import torch


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return a device that this machine has.

    Args:
        device: Its name; None for the best there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: It cannot be used here.
    """
    if device is None:
        device = next((d for d in ("cuda", "mps") if getattr(torch, d).is_available()), "cpu")
    try:
        return torch.empty(0, device=device).device
    # What PyTorch raises for a device that it does not know, was not built for, or does not find.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used ({str(error).split('. ')[0]}): give one that this "
            "machine has, such as cpu, cuda, cuda:1 or mps, or none to take the best."
        ) from error
