"""`ituning info`: describe a saved captioner."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.rules import MODEL, NAME
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import quiet_transformers


@dataclass
class InfoArguments(Settings):
    """The settings of `ituning info`."""

    model: str = option(REQUIRED, "a captioner's folder or Hub id", MODEL, positional=True)
    revision: str | None = option(None, "its revision on the Hub", NAME, "the newest")
    json: bool = option(False, "print JSON")


def run(argv: Sequence[str]) -> int:
    """Print the description and return the exit code."""
    args = read_settings(
        InfoArguments, argv, "ituning info", "Describe a saved captioner without loading its weights."
    )
    quiet_transformers()
    from ..hub.inspection import describe

    description = describe(args.model, revision=args.revision)
    print(json.dumps(description, indent=2) if args.json else format_description(description))
    return 0


def format_description(description: dict[str, Any]) -> str:
    """Format what `describe` returned for a terminal, in several lines."""
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
    norm = ", normalized" if adapter["vision_feature_norm"] else ""
    yield "", f"reads hidden state {adapter['vision_feature_layer']} of the vision model{norm}"
    yield "", f"{adapter['parameters']:,} parameters in {adapter['dtype']}, {adapter['bytes']:,} bytes"
    share = parameters["trainable"] / parameters["total"]
    yield "parameters", f"{parameters['trainable']:,} trainable of {parameters['total']:,} ({share:.2%})"


def _training_rows(training: dict[str, Any]) -> Iterator[tuple[str, str]]:
    validated = f", {training['num_eval_images']:,} to validate" if training["eval_split"] else ""
    data = training["dataset"] or "images given in Python"
    images = training["num_train_images"]
    yield "trained on", f"{data}: {'unknown' if images is None else format(images, ',')} images{validated}"
    found = training["validation"]
    loss = f"; loss on {training['eval_split']} {found['scores']['loss']:.4f}" if found else ""
    epoch = "" if training["epoch"] is None else f", epoch {training['epoch']:.4g}"
    yield "", f"{training['step']:,} steps{epoch}{loss}"


def _join(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
