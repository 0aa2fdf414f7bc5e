"""What a saved captioner is, read from its small files alone.

No backbone is loaded or looked up, and no code of the captioner's repository runs.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from transformers import __version__ as transformers_version
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from .._version import __version__
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import check_adapter_tensors, load_generation_config, read_adapter_file
from ..inference.loading import find_optional, read_config
from .records import TRAINING_FILE, read_training_record


def describe(model_name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """Describe a saved captioner.

    Args:
        model_name_or_path: The captioner's folder or Hub id. From the Hub, only the configurations, the
            adapter and the training record are downloaded.
        revision: The captioner's revision on the Hub.

    Returns:
        A dictionary that JSON can hold:

        - `name`, `model_type`, `format_version`, `versions` (saved with, and installed);
        - `vision_model`, `text_model`: the source of each frozen model (`name_or_path`, `revision`,
          `fingerprint`), its `model_type`, `num_layers`, `hidden_size` and `parameters`;
        - `adapter`: `hidden_size` (r), `num_heads`, `layers`, `scale`, `dropout`, `vision_feature_layer`,
          `vision_feature_norm`, and, from the weights' file, `parameters`, `dtype` and `bytes`;
        - `parameters`: `trainable`, `frozen` and `total`, tied weights counted once;
        - `generation`: the default generation settings;
        - `training`: `training.json` without the settings and versions; None without the file;
        - `commit`: the commit of a Hub id; otherwise None;
        - `files`: the size in bytes of each file in the folder (of a Hub id: in the cache).

    Raises:
        OSError: if there is no captioner.
        ValueError: if the configuration or the adapter file is damaged, or they do not fit together.

    Example:
    ```python
    >>> from ituning_hf.hub.inspection import describe
    >>> describe("my-captioner")["adapter"]["parameters"]  # doctest: +SKIP
    14178816

    ```
    """
    name = os.fspath(model_name_or_path)
    folder, raw_config = read_config(name, revision)
    path = cached_file(name, SAFE_WEIGHTS_NAME, revision=revision)
    tensors = read_adapter_file(path)
    model = _build_on_meta(json.dumps(raw_config, sort_keys=True))
    check_adapter_tensors(tensors, model.adapter_state_dict(), name)
    parts = _describe_parts(model)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    parts["adapter"] |= {"dtype": ", ".join(sorted(dtypes)), "bytes": os.path.getsize(path)}
    generation = load_generation_config(name, model.generation_config, revision=revision).to_diff_dict()
    generation.pop("transformers_version", None)
    training_file = find_optional(name, TRAINING_FILE, revision)
    record = read_training_record(training_file.parent) if training_file else None
    excluded = ("settings", "versions")
    return {
        "name": name,
        "model_type": model.config.model_type,
        "format_version": model.config.format_version,
        "versions": {
            "saved_with_transformers": raw_config.get("transformers_version"),
            "ituning_hf": __version__,
            "transformers": transformers_version,
            "torch": str(torch.__version__),
        },
        **parts,
        "generation": generation,
        "training": record and {key: value for key, value in asdict(record).items() if key not in excluded},
        "commit": folder.name if folder.parent.name == "snapshots" and not os.path.isdir(name) else None,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    }


def describe_config(config: ITuningConfig) -> dict[str, Any]:
    """Return `describe`'s `vision_model`, `text_model`, `adapter` and `parameters` of a configuration."""
    return _describe_parts(_build_on_meta(config.to_json_string(use_diff=False)))


@lru_cache(maxsize=2)  # a training run saves captioners of one configuration
def _build_on_meta(config: str) -> ITuningForCaptioning:
    """Build a captioner from its configuration as JSON. Its tensors have shapes and no memory."""
    with torch.device("meta"):
        return ITuningForCaptioning(ITuningConfig.from_dict(json.loads(config)))


def _describe_parts(model: ITuningForCaptioning) -> dict[str, Any]:
    config = model.config
    backbones = {kind: _describe_backbone(kind, model) for kind in ("vision", "text")}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(backbone["parameters"] for backbone in backbones.values())
    return {
        "vision_model": backbones["vision"],
        "text_model": backbones["text"],
        "adapter": {
            "hidden_size": config.adapter_hidden_size,
            "num_heads": config.adapter_num_heads,
            "layers": list(config.adapter_layers),
            "scale": config.adapter_scale,
            "dropout": config.adapter_dropout,
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_norm": config.vision_feature_norm,
            "parameters": trainable,
        },
        "parameters": {"trainable": trainable, "frozen": frozen, "total": trainable + frozen},
    }


def _describe_backbone(kind: str, model: ITuningForCaptioning) -> dict[str, Any]:
    config, backbone = model.config, getattr(model.config, f"{kind}_config")
    weights = getattr(model, f"{kind}_model").named_parameters()  # tied weights once
    return {
        "name_or_path": getattr(config, f"{kind}_model_name_or_path"),
        "revision": getattr(config, f"{kind}_model_revision"),
        "fingerprint": getattr(config, f"{kind}_model_fingerprint"),
        "model_type": backbone.model_type,
        "num_layers": backbone.num_hidden_layers,
        "hidden_size": backbone.hidden_size,
        "parameters": sum(weight.numel() for key, weight in weights if ".adapter." not in key),
    }


__all__ = ["describe", "describe_config"]
