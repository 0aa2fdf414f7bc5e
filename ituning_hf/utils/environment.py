"""What a report says of where it was made."""

from __future__ import annotations

import platform

import accelerate
import torch
import transformers

from .._version import __version__


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide on numbers, by name."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "ituning_hf": __version__,
    }


def device_name(device: torch.device) -> str:
    """Name a device as its maker does, where it has such a name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type.upper()
