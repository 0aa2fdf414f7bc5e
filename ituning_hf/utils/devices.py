"""Devices, deterministic computation and the versions of libraries."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from .._version import __version__
from .errors import UserError

# The environment variables that Transformers sets for it.
_VARIABLES = (
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "ASCEND_LAUNCH_BLOCKING",
    "HCCL_DETERMINISTIC",
    "FLASH_ATTENTION_DETERMINISTIC",
)


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return a device that this machine has.

    Args:
        device: Its name; None for the best there is: CUDA, then Apple's MPS, then the CPU.

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
            f"device {str(device)!r} cannot be used ({str(error).split('. ')[0]}): give one that this "
            "machine has, such as cpu, cuda, cuda:1 or mps, or none to take the best."
        ) from error


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or the kind of another device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type.upper()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that influence numbers, by name."""
    libraries = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"python": platform.python_version(), **libraries, "ituning_hf": __version__}


@contextmanager
def full_determinism(enabled: bool, seed: int) -> Iterator[None]:
    """Use only deterministic algorithms inside the block, by the same switches as Transformers' trainer.

    This changes no number on a CPU. On a GPU kernels run one after another, and an operation without a
    deterministic algorithm raises an error. The block's end restores the switches, not the generators.

    Args:
        enabled: False does nothing.
        seed: The seed of Python, NumPy and PyTorch.
    """
    if not enabled:
        yield
        return
    from transformers import enable_full_determinism  # imports Transformers' trainer, which few commands need

    environment = {name: os.environ.get(name) for name in _VARIABLES}
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    enable_full_determinism(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
