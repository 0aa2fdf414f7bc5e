"""Where the time of generation goes: which part of the model has it, and how much is in matrix products."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function

from .generation_ways import CaptionSettings, Generate, build_ways
from .report import Row

ENCODER, CROSS_ATTENTION, BODY = "vision encoder", "cross-attention", "rest of the body"
OUTPUT, SEARCH = "output layer", "search"
PROJECTION, BODY_PRODUCTS = "images' keys and values", "the body's matrix products"
COLUMNS = (ENCODER, PROJECTION, BODY_PRODUCTS, CROSS_ATTENTION, BODY, OUTPUT, SEARCH)

_CLASSES = {
    "CLIPVisionModel": ENCODER,
    "GitVisionModel": ENCODER,
    "BlipVisionModel": ENCODER,
    "ITuningAdapter": CROSS_ATTENTION,
    "GPT2Model": BODY,
    "GitModel": BODY,
    "BlipTextModel": BODY,
}
_MATRIX_PRODUCTS = {"aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"}


def profile_tables(names: list[str], settings: CaptionSettings) -> dict[str, list[Row]]:
    """Profile ways, each once after a call that does not count.

    Returns:
        A table of milliseconds and one of percent. The profiler takes time itself, most of all of what is
        spent outside matrix products.
    """
    milliseconds: list[Row] = []
    shares: list[Row] = []
    for name, way in build_ways(names, settings).items():
        way()
        parts = profile_call(way, settings.device)
        total = sum(parts.values())
        milliseconds.append({"way": name, "all": 1000 * total} | {c: 1000 * parts[c] for c in COLUMNS})
        shares.append({"way": name} | {c: 100 * parts[c] / total for c in COLUMNS})
    return {"where the time goes, ms of a call": milliseconds, "the same, %": shares}


def profile_call(way: Generate, device: str) -> dict[str, float]:
    """Call once under the profiler, and return the seconds of each of `COLUMNS`.

    On CUDA they are those of the kernels, and what the device waits is counted as search.
    """
    on_cuda = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    with _named_parts(), profile(activities=activities) as profiler:
        started = time.perf_counter()
        with record_function(SEARCH):
            way()
            if on_cuda:
                torch.cuda.synchronize()
        total = time.perf_counter() - started
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CPU:
            taken = event.self_device_time_total if on_cuda else event.self_cpu_time_total
            seconds[_column(event)] += taken / 1e6
    seconds[SEARCH] = total - sum(seconds[column] for column in COLUMNS if column != SEARCH)
    return seconds


def _column(event: Any) -> str:
    """Return where an operation's own time belongs: to the innermost named part around it."""
    product = event.name in _MATRIX_PRODUCTS
    ancestor = event
    while ancestor is not None and ancestor.name not in COLUMNS:
        ancestor = ancestor.cpu_parent
    part = SEARCH if ancestor is None else ancestor.name
    if part == BODY and product:
        return BODY_PRODUCTS
    # A search multiplies no matrices: what does so there projects the images once for all steps.
    return PROJECTION if part == SEARCH and product else part


@contextmanager
def _named_parts() -> Iterator[None]:
    """Let the profiler see when a part of a model is entered and left."""
    open_ranges = []

    def enter(module: nn.Module, _: Any) -> None:
        if (part := _part(module)) is not None:
            open_ranges.append(record_function(part))
            open_ranges[-1].__enter__()

    def leave(module: nn.Module, *_: Any) -> None:
        if _part(module) is not None:
            open_ranges.pop().__exit__(None, None, None)

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part(module: nn.Module) -> str | None:
    if getattr(module, "is_cross_attention", False):
        return CROSS_ATTENTION
    # Of all layers the output layer alone widens to the vocabulary.
    if isinstance(module, nn.Linear) and module.out_features > 8 * module.in_features:
        return OUTPUT
    return _CLASSES.get(type(module).__name__)
