"""Computation that gives the same bytes whenever it is repeated on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import enable_full_determinism


@contextmanager
def full_determinism(enabled: bool, seed: int) -> Iterator[None]:
    """Compute by deterministic algorithms alone, by the switches that Transformers' own trainer sets.

    On a CPU that changes no number. On a GPU kernels wait for one another, and an operation without a
    deterministic form raises an error. Before the block ends, everything is as it was.

    Args:
        enabled: False does nothing.
        seed: Of Python, NumPy and PyTorch.
    """
    if not enabled:
        yield
        return
    environment = dict(os.environ)
    algorithms = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    enable_full_determinism(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        os.environ.clear()
        os.environ.update(environment)
