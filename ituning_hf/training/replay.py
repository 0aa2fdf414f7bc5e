"""A batch at which a run ended, computed once more: what is the first thing that is not finite?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import UnloadedVisionModel
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import load_backbone, read_adapter_file
from ..data.records import first_names
from ..inference.int8 import quantize_frozen_weights
from ..utils.determinism import full_determinism
from ..utils.devices import usable_device
from ..utils.environment import library_versions
from .micro_batch import MicroBatch, gradients
from .nonfinite import ADAPTER_FILE, CONFIG_FILE, REPORT_FILE, SHOWN_NAMES

Report = Callable[[str], None]

_WRITTEN = {"what", "value", "step", "epoch", "batches", "computation", "versions"}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def replay(
    folder: Path,
    report: Report,
    device: str | None = None,
    vision_model: str | None = None,
    text_model: str | None = None,
) -> dict[str, torch.Tensor]:
    """Compute again what a run computed when its numbers were no longer finite.

    On the device and with the versions of the run, every loss is the run's to the last bit.

    Args:
        folder: What the run saved.
        report: Is told each line.
        device: What computes; by default the run's kind.
        vision_model: Where the frozen vision encoder has moved to.
        text_model: Where the frozen language model has moved to.

    Returns:
        The loss of each batch, by its file's name.

    Raises:
        FileNotFoundError: if the run saved nothing there, or a file of it is missing.
        NotADirectoryError: if `folder` is a file.
        OSError, ValueError: if it is damaged, or a frozen model is not where it was, or another one.
    """
    saved = _read_report(folder)
    for line in _describe_run(saved):
        report(line)
    computation, losses = saved["computation"], {}
    batches = {file: _read_batch(folder / file) for file in saved["batches"]}
    config = _read_config(folder, vision_model, text_model)
    captioner = _load_captioner(folder, config, computation, batches)
    captioner.to(usable_device(device or computation["device"]))
    with full_determinism(computation["full_determinism"], 0), _threads(computation["num_threads"]):
        for file, batch in batches.items():
            report(f"Batch      {file}")
            for line in _describe_images(saved["batches"][file]):
                report(line)
            losses[file] = _replay_batch(captioner, batch, computation, report)
    return losses


def _read_report(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, expected the run's nonfinite-step-N folder.")
    file = folder / REPORT_FILE
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} is nothing to replay: it has no {REPORT_FILE}. Give a folder such as "
            "OUTPUT_DIR/nonfinite-step-17, which a run leaves where its numbers stop being finite."
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again.") from error
    if not isinstance(saved, dict) or not saved.keys() >= _WRITTEN:
        raise ValueError(f"{file} is damaged (it is not what a run writes): copy it again.")
    for name in (CONFIG_FILE, ADAPTER_FILE, *saved["batches"]):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder / name} is missing: copy the folder again.")
    return saved


def _read_batch(file: Path) -> MicroBatch:
    try:
        return MicroBatch.load(file)
    except (KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again.") from error


def _read_config(folder: Path, vision_model: str | None, text_model: str | None) -> ITuningConfig:
    moved = {"vision_model_name_or_path": vision_model, "text_model_name_or_path": text_model}
    places = {field: place for field, place in moved.items() if place is not None}
    return ITuningConfig.from_pretrained(folder, **places)


def _load_captioner(
    folder: Path, config: ITuningConfig, computation: dict[str, Any], batches: dict[str, MicroBatch]
) -> ITuningForCaptioning:
    """Load what the run computed with; `from_pretrained` would refuse weights that are not finite."""
    precision = computation["frozen_precision"]
    options = {} if precision in (None, "int8") else {"dtype": precision}
    sees_pixels = any("pixel_values" in batch.inputs for batch in batches.values())
    vision = (
        load_backbone("vision", config, **options)
        if sees_pixels
        else UnloadedVisionModel(config.vision_config)
    )
    captioner = ITuningForCaptioning(config, vision, load_backbone("text", config, **options))
    own, tensors = captioner.adapter_state_dict(), read_adapter_file(str(folder / ADAPTER_FILE))
    if {name: x.shape for name, x in own.items()} != {name: x.shape for name, x in tensors.items()}:
        raise ValueError(
            f"{folder / ADAPTER_FILE} does not fit config.json beside it: copy the folder again."
        )
    captioner.load_state_dict(tensors, strict=False)
    if precision == "int8":
        quantize_frozen_weights(captioner)
    if computation["gradient_checkpointing"]:
        captioner.activation_checkpointing_enable()
    return captioner.train(computation["training"])


def _describe_run(saved: dict[str, Any]) -> Iterator[str]:
    yield f"Run        {saved['what']} {saved['value']} at step {saved['step']} (epoch {saved['epoch']:.2f})"
    now = library_versions()
    changed = [
        f"{name} {then}, now {now[name]}" for name, then in saved["versions"].items() if then != now[name]
    ]
    if changed:
        yield f"Versions   {'; '.join(changed)}: last digits may differ"


def _describe_images(of_file: dict[str, Any]) -> Iterator[str]:
    yield f"Images     {first_names(of_file['images'], SHOWN_NAMES)}"
    for name, images in of_file["nonfinite_inputs"].items():
        yield f"Input      {name} is not finite: {first_names(images, SHOWN_NAMES)}"


def _replay_batch(
    captioner: ITuningForCaptioning, batch: MicroBatch, computation: dict[str, Any], report: Report
) -> torch.Tensor:
    training, dtype = computation["training"], _DTYPES.get(computation["mixed_precision"])
    autocast = nullcontext() if dtype is None else torch.autocast(captioner.device.type, dtype)
    with torch.set_grad_enabled(training), autocast, _first_nonfinite(captioner) as first:
        loss = batch.compute(captioner, computation["label_smoothing"])
    value = loss.detach().cpu()
    same = value.numpy().tobytes() == batch.loss.numpy().tobytes()
    report(
        f"Loss       {float(value)!r}, "
        + ("as in the run" if same else f"and {float(batch.loss)!r} in the run")
    )
    found = gradients(captioner, loss, computation["gradient_factor"]) if training else {}
    report(f"First      {first[0]}" if first else _describe_norm(found))
    if training:
        for line in _describe_gradients(captioner, found):
            report(line)
    return value


def _describe_norm(found: dict[str, torch.Tensor]) -> str:
    """Say what there is to say where each module's output is finite."""
    sizes = {name: _largest(gradient) for name, gradient in found.items()}
    norm = float(nn.utils.get_total_norm(list(found.values())))
    if math.isfinite(norm) or not all(map(math.isfinite, sizes.values())):
        return "First      none: what each module gives is finite"
    largest = max(sizes, key=sizes.__getitem__)
    return (
        "Norm       each gradient is finite, their norm overflows fp32; the largest is "
        f"{largest} (magnitude {sizes[largest]:.3g})"
    )


@contextmanager
def _first_nonfinite(captioner: nn.Module) -> Iterator[list[str]]:
    """Note the first module, in the order of computation, that gives something that is not finite.

    A hook of all modules, and none of one: with a hook on a feed-forward network the captioner computes it
    by another kernel.
    """
    names = {module: name for name, module in captioner.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and module in names:
            broken = [x for x in _tensors(output) if not x.isfinite().all()]
            if broken:
                count = int((~broken[0].isfinite()).sum())
                found.append(f"{names[module]}, {count:,} of {broken[0].numel():,} values")

    hook = register_module_forward_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def _describe_gradients(captioner: nn.Module, found: dict[str, torch.Tensor]) -> Iterator[str]:
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    yield f"Gradients  {len(broken)} of {len(found)} tensors are not finite; largest magnitudes:"
    width = max(map(len, found))
    yield f"{'':<{width}}  {'weight':>9}  {'gradient':>9}"
    for name, gradient in found.items():
        mark = "  not finite" if name in broken else ""
        sizes = "  ".join(f"{_largest(x):>9.3g}" for x in (captioner.get_parameter(name), gradient))
        yield f"{name:<{width}}  {sizes}{mark}"


def _largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude; NaN, where there is one, is larger than any."""
    return float(tensor.detach().abs().max())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads: a sum that more of them share has other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
