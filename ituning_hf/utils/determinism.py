"""Computation that gives the same bytes whenever it is repeated on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import enable_full_determinism

# What it sets. All that else changes in the environment is not this module's.
_VARIABLES = (
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "ASCEND_LAUNCH_BLOCKING",
    "HCCL_DETERMINISTIC",
    "FLASH_ATTENTION_DETERMINISTIC",
)


@contextmanager
def full_determinism(enabled: bool, seed: int) -> Iterator[None]:
    """Compute by deterministic algorithms alone, by the switches that Transformers' own trainer sets.

    On a CPU that changes no number. On a GPU kernels wait for one another, and an operation without a
    deterministic form raises an error. When the block ends the switches are as they were; generators go on.

    Args:
        enabled: False does nothing.
        seed: Of Python, NumPy and PyTorch.
    """
    if not enabled:
        yield
        return
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
