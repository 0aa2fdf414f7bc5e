"""Devices, and the versions of libraries."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

import torch

from .._version import __version__
from .errors import UserError


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return a device that this machine has.

    Args:
        device: The name; None for the best available: CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: if it cannot be used here.
    """
    if device is None:
        device = next((d for d in ("cuda", "mps") if getattr(torch, d).is_available()), "cpu")
    try:
        return torch.empty(0, device=device).device
    # What PyTorch raises for a device that it does not know, was not built for, or does not find.
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used ({str(error).split('. ')[0]}): give a device of this "
            "machine, such as cpu, cuda, cuda:1 or mps, or none for the best available."
        ) from error


def default_dtype(device: torch.device) -> str | None:
    """Return the precision of weights for which none is given; None means that of each file."""
    return "float32" if device.type == "cpu" else None  # on a CPU, fp16 is up to ten times slower


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or the kind of another device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type.upper()


def peak_resident_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that influence numbers, by name."""
    libraries = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"python": platform.python_version(), **libraries, "ituning_hf": __version__}
