"""The peak memory of one way, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .arguments import quiet
from .report import Report

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes at the highest point of a call.

    Args:
        total: With the weights, which are there before the call.
        own: What the call added to them: activations, gradients, an optimiser's state, a cache.
    """

    total: int
    own: int


def can_measure(device: str) -> bool:
    """Tell whether this machine says what a process's peak was."""
    return torch.device(device).type == "cuda" or (_CLEAR.exists() and "VmHWM" in _STATUS.read_text())


def peak_memory(
    build: Callable[..., Callable[[], object]], *arguments: Any, device: str = "cpu", calls: int = 2
) -> Memory:
    """Build and call something in a new process, and return the peak of the calls.

    On a CPU that is resident memory, less what the process held before anything was built; on CUDA, what
    was allocated.

    Args:
        build: Makes what is called; a function of a module, since the new process imports it.
        *arguments: For `build`.
        device: Where it computes.
        calls: How often it is called: an optimiser's state is there from the second step on.

    Raises:
        ValueError: this machine does not say what a process's peak was; see `can_measure`.
    """
    if not can_measure(device):
        raise ValueError("peak memory cannot be measured here: Linux's /proc/self/clear_refs is missing.")
    # A fresh interpreter: a forked one would begin with the parent's models in its memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (build, arguments, device, calls))


def peak_memories(
    names: Sequence[str],
    build: Callable[..., Callable[[], object]],
    settings: Any,
    report: Report,
    calls: int = 2,
) -> dict[str, Memory]:
    """Measure ways by their names; where this machine does not tell, note that in the report instead.

    Args:
        names: The ways.
        build: Makes a way of its name and the settings.
        settings: For `build`; their `device` is where it computes.
        report: That is noted in.
        calls: As in `peak_memory`.
    """
    if not can_measure(settings.device):
        report.notes.append("Peak memory was not measured: Linux's /proc/self/clear_refs is not there.")
        return {}
    return {name: peak_memory(build, name, settings, device=settings.device, calls=calls) for name in names}


def _measure(
    build: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: str, calls: int
) -> Memory:
    on_cuda = torch.device(device).type == "cuda"
    before = 0 if on_cuda else _resident()
    with quiet():
        call = build(*arguments)
        held = torch.cuda.memory_allocated(device) if on_cuda else _resident()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _CLEAR.write_text("5")  # the peak begins anew at what is resident
        for _ in range(calls):
            call()
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else _status_bytes("VmHWM")
    return Memory(peak - before, peak - held)


def _resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed while building is no part of what is held
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
