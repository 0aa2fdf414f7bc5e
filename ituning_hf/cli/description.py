"""Format the description of a captioner for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any


def format_description(description: dict[str, Any]) -> str:
    """Format a description.

    Args:
        description: What `describe` returned.

    Returns:
        Several lines, without a line break at the end.
    """
    return "\n".join(f"{label:<16}{text}".rstrip() for label, text in _rows(description))


def _rows(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each line; the label is empty in continuation lines."""
    installed = dict(description["versions"])
    saved_with = installed.pop("saved_with_transformers")
    yield "captioner", description["name"]
    if description["commit"]:
        yield "", f"at commit {description['commit']}"
    yield "saved with", f"transformers {saved_with}, checkpoint format {description['format_version']}"
    yield "installed", _join(installed)
    for kind in ("vision", "text"):
        backbone = description[f"{kind}_model"]
        revision = f" at revision {backbone['revision']}" if backbone["revision"] else ""
        place = backbone["name_or_path"]
        gone = " (not found)" if place and os.path.isabs(place) and not os.path.isdir(place) else ""
        yield f"{kind} model", f"{place}{revision}{gone}"
        shape = f"{backbone['num_layers']} layers of width {backbone['hidden_size']}"
        yield "", f"{backbone['model_type']}, {shape}"
        yield "", f"{backbone['parameters']:,} parameters, frozen; fingerprint {backbone['fingerprint']}"
    yield from _adapter_rows(description)
    if description["training"]:
        yield from _training_rows(description["training"])
    yield "generation", _join(description["generation"])
    for i, (file, size) in enumerate(description["files"].items()):
        yield "" if i else "files here" if description["commit"] else "files", f"{size:>13,} bytes  {file}"


def _adapter_rows(description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    adapter, parameters = description["adapter"], description["parameters"]
    layers, depth = adapter["layers"], description["text_model"]["num_layers"]
    where = f"all {depth} layers" if len(layers) == depth else f"layers {layers} of {depth}"
    yield "adapter", f"in {where}, of width {adapter['hidden_size']} with {adapter['num_heads']} heads"
    yield "", f"scale {adapter['scale']}, dropout {adapter['dropout']}"
    yield "", f"reads hidden state {adapter['vision_feature_layer']} of the vision model"
    yield "", f"{adapter['parameters']:,} parameters in {adapter['dtype']}, {adapter['bytes']:,} bytes"
    share = parameters["trainable"] / parameters["total"]
    yield "parameters", f"{parameters['trainable']:,} trainable of {parameters['total']:,} ({share:.2%})"


def _training_rows(training: dict[str, Any]) -> Iterator[tuple[str, str]]:
    validated = f", {training['num_eval_images']:,} to validate" if training["eval_split"] else ""
    data = training["dataset"] or "images given in Python"
    yield "trained on", f"{data}: {training['num_train_images']:,} images{validated}"
    found = training["validation"]
    loss = f"; loss on {training['eval_split']} {found['scores']['loss']:.4f}" if found else ""
    yield "", f"{training['step']:,} steps, epoch {training['epoch']:.4g}{loss}"


def _join(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
