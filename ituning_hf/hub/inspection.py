"""What a saved captioner is, read from its small files alone.

No backbone is loaded or looked for, and no code from the captioner's repository is run.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file

from .._version import __version__
from ..captioner.adapter_file_ituning import check_adapter_tensors, read_adapter_file
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.generation_file_ituning import read_generation_settings
from ..captioner.json_ituning import read_json_object
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.seal_ituning import check_adapter_unchanged
from ..utils.hub import explain_hub_error
from .training_record import TRAINING_FILE, read_training_record

_PEFT = "an adapter of PEFT, of which `ituning convert` makes a captioner"


def describe(model_name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """Describe a saved captioner.

    Args:
        model_name_or_path: The captioner's folder or Hub id. Of the latter only the configurations, the
            adapter and the record of its training are downloaded.
        revision: The captioner's revision on the Hub.

    Returns:
        A dictionary that JSON can hold:

        - `name`, `model_type`, `format_version`, `versions` (of what saved it, and of what is installed);
        - `vision_model`, `text_model`: where each frozen model comes from (`name_or_path`, `revision`,
          `fingerprint`), its `model_type`, `num_layers`, `hidden_size` and `parameters`;
        - `adapter`: `hidden_size` (r), `num_heads`, `layers`, `scale`, `dropout`,
          `vision_feature_layer`, and, from the weights' file, `parameters`, `dtype` and `bytes`;
        - `parameters`: `trainable`, `frozen` and `total`, tied weights counted once;
        - `generation`: the default generation settings;
        - `training`: what `training.json` says of it, but for the settings and versions; None without it;
        - `commit`: of a Hub id, the captioner's; otherwise None;
        - `files`: the size in bytes of each file in the folder (of a Hub id, of those on this machine).

    Raises:
        OSError: if there is no captioner at that place.
        ValueError: if what is there is no captioner, or its adapter file is damaged or does not fit, or it
            or config.json was changed since they were saved.

    Example:
    ```python
    >>> from ituning_hf.hub.inspection import describe
    >>> describe("my-captioner")["adapter"]["parameters"]  # doctest: +SKIP
    14178816

    ```
    """
    name = os.fspath(model_name_or_path)
    folder, raw_config = read_config(name, revision)
    config = ITuningConfig.from_dict(raw_config)
    path = _find(name, SAFE_WEIGHTS_NAME, revision)
    tensors = read_adapter_file(os.fspath(path))
    check_adapter_unchanged(tensors, config, name)
    model = build_shapes(config)
    check_adapter_tensors(tensors, model.adapter_state_dict(), name)
    stored = _describe_adapter(tensors) | {"bytes": os.path.getsize(path)}
    parts = _describe_parts(config, model, stored)
    return {
        "name": name,
        "model_type": config.model_type,
        "format_version": config.format_version,
        "versions": {
            "saved_with_transformers": raw_config.get("transformers_version"),
            "ituning_hf": __version__,
            "transformers": transformers_version,
            "torch": str(torch.__version__),
        },
        **parts,
        "generation": _generation_settings(name, revision, model),
        "training": _training(name, revision),
        "commit": folder.name if folder.parent.name == "snapshots" and not os.path.isdir(name) else None,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    }


def describe_config(config: ITuningConfig) -> dict[str, Any]:
    """Describe a captioner that is not stored: `vision_model`, `text_model`, `adapter` and `parameters`.

    Args:
        config: Its configuration.

    Returns:
        Those parts of what `describe` returns, but for the adapter's `dtype` and `bytes`.
    """
    model = build_shapes(config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _describe_parts(config, model, {"parameters": trainable})


def build_shapes(config: ITuningConfig) -> ITuningForCaptioning:
    """Build a captioner whose tensors have shapes and no memory.

    Raises:
        ValueError: for sizes of frozen models that no model can have.
    """
    try:
        with torch.device("meta"):
            return ITuningForCaptioning(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"config.json describes frozen models that cannot be built ({type(error).__name__}: {error}): "
            "copy or download it again."
        ) from error


def _describe_parts(
    config: ITuningConfig, model: ITuningForCaptioning, stored: dict[str, Any]
) -> dict[str, Any]:
    backbones = {kind: _describe_backbone(kind, config, model) for kind in ("vision", "text")}
    trainable, frozen = stored["parameters"], sum(part["parameters"] for part in backbones.values())
    return {
        "vision_model": backbones["vision"],
        "text_model": backbones["text"],
        "adapter": {
            "hidden_size": config.adapter_hidden_size,
            "num_heads": config.adapter_num_heads,
            "layers": config.adapter_layers,
            "scale": config.adapter_scale,
            "dropout": config.adapter_dropout,
            "vision_feature_layer": config.vision_feature_layer,
            **stored,
        },
        "parameters": {"trainable": trainable, "frozen": frozen, "total": trainable + frozen},
    }


def read_config(
    model_name_or_path: str | os.PathLike[str], revision: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Read a captioner's `config.json`.

    Args:
        model_name_or_path: The captioner's folder or Hub id.
        revision: The captioner's revision on the Hub.

    Returns:
        The folder that holds it on this machine, and its contents.

    Raises:
        OSError: if there is none at that place.
        ValueError: if it is not a captioner's.
    """
    name = os.fspath(model_name_or_path)
    try:
        path = _find(name, CONFIG_NAME, revision)
    except OSError as error:
        raise OSError(
            f"There is no captioner at {name!r}: {_what_is_there(name, revision, error)}. Give a folder that "
            "a captioner was saved to, or its id on the Hub."
        ) from error
    config = read_json_object(path)
    model_type = config.get("model_type")
    if model_type != ITuningConfig.model_type:
        beside = (
            f"beside it is {_PEFT}" if holds_peft_adapter(name, revision) else "give an I-Tuning captioner"
        )
        raise ValueError(
            f"{name!r} holds a model of type {model_type!r}, expected {ITuningConfig.model_type!r}: {beside}."
        )
    return path.parent, config


def _find(name: str, filename: str, revision: str | None) -> Path:
    path = cached_file(name, filename, revision=revision)
    if path is None:  # Transformers excuses a folder that lacks a config.json, and no other file
        raise FileNotFoundError(f"no {filename} in {name!r}")
    return Path(path)


def _what_is_there(name: str, revision: str | None, error: OSError) -> str:
    if holds_peft_adapter(name, revision):
        return f"{'the folder' if os.path.isdir(name) else 'the repository'} holds {_PEFT}"
    if not os.path.isdir(name):
        reason = explain_hub_error(error) or str(error).rstrip(".")
        return f"there is no such folder, and as an id on the Hub: {reason}"
    inside = sorted(path.parent.name for path in Path(name).glob(f"*/{CONFIG_NAME}"))
    return f"the folder has no {CONFIG_NAME}" + (f", but {inside} inside it have" if inside else "")


def _find_if_there(name: str, filename: str, revision: str | None) -> Path | None:
    """Find a file that is not needed, and so not worth a word where the Hub does not give it."""
    try:
        path = cached_file(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if path is None else Path(path)


def holds_peft_adapter(name: str, revision: str | None) -> bool:
    """Tell whether an adapter of PEFT lies at a place, of whatever method."""
    return _find_if_there(name, "adapter_config.json", revision) is not None


def _describe_adapter(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return {"parameters": parameters, "dtype": ", ".join(dtypes)}


def _describe_backbone(kind: str, config: ITuningConfig, model: ITuningForCaptioning) -> dict[str, Any]:
    backbone = getattr(config, f"{kind}_config")
    weights = getattr(model, f"{kind}_model").named_parameters()  # tied ones once
    return {
        "name_or_path": getattr(config, f"{kind}_model_name_or_path"),
        "revision": getattr(config, f"{kind}_model_revision"),
        "fingerprint": getattr(config, f"{kind}_model_fingerprint"),
        "model_type": backbone.model_type,
        "num_layers": backbone.num_hidden_layers,
        "hidden_size": backbone.hidden_size,
        "parameters": sum(weight.numel() for key, weight in weights if ".adapter." not in key),
    }


def _generation_settings(name: str, revision: str | None, model: ITuningForCaptioning) -> dict[str, Any]:
    path = _find_if_there(name, GENERATION_CONFIG_NAME, revision)
    # Where none was saved, the model makes its own when it is loaded, and it just did.
    settings = model.generation_config
    if path is not None:
        settings = read_generation_settings(path, settings, model.config.text_config.vocab_size)
    return {k: v for k, v in settings.to_diff_dict().items() if k != "transformers_version"}


def _training(name: str, revision: str | None) -> dict[str, Any] | None:
    path = _find_if_there(name, TRAINING_FILE, revision)
    record = read_training_record(path.parent) if path else None
    if record is None:
        return None
    return {key: value for key, value in asdict(record).items() if key not in ("settings", "versions")}


__all__ = ["build_shapes", "describe", "describe_config", "holds_peft_adapter", "read_config"]
