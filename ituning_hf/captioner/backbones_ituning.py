"""Bringing the frozen backbones from disk or Hub, or taking them as they are in memory.

Each backbone is loaded by its own class. What is checked here is that it is *the* backbone: that nothing
of it was left at random values, and that its weights are those the adapter was trained on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import CLIPVisionModel, GPT2LMHeadModel, PreTrainedModel, modeling_utils

from .configuration_ituning import ITuningConfig
from .fingerprint_ituning import check_weights_unchanged, fingerprint, model_fingerprint
from .inputs_ituning import check_pixel_values

_CLASSES = {"vision": CLIPVisionModel, "text": GPT2LMHeadModel}
# What makes another model of the same weights.
_ARCHITECTURE = {
    "vision": ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size"),
    "text": (
        "num_hidden_layers",
        "num_attention_heads",
        "activation_function",
        "layer_norm_epsilon",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
    ),
}

# Building a model, Transformers sets torch's default precision, and takes methods of its own away, for the
# whole process; two threads at once leave it so for ever. Kept there, because each captioner's repository
# has a copy of this file.
building = vars(modeling_utils).setdefault("_ituning_building", threading.RLock())


def load_backbone(kind: str, config: ITuningConfig, **kwargs: Any) -> PreTrainedModel:
    """Load a backbone from the place that the configuration records, and prove that it is the right one.

    Args:
        kind: "vision" or "text".
        config: Holds the place, the revision and the fingerprint.
        **kwargs: For the backbone's own `from_pretrained`.

    Returns:
        The backbone, in evaluation mode.

    Raises:
        ValueError: if the place or the fingerprint is not recorded, or the weights are not the recorded
            ones, or some of them are missing.
        OSError: if the backbone is not there.
    """
    name, revision = _find_recorded(kind, config, **_hub_kwargs(kwargs))
    model = load_pretrained_backbone(kind, name, revision=revision, **kwargs)
    _check_architecture(kind, model, config, f"found at {name!r}")
    return model


def _find_recorded(kind: str, config: ITuningConfig, **hub_kwargs: Any) -> tuple[str, str | None]:
    """Return a backbone's recorded place and revision, once it is proved that the right one lies there."""
    name = getattr(config, f"{kind}_model_name_or_path")
    revision = getattr(config, f"{kind}_model_revision")
    expected = getattr(config, f"{kind}_model_fingerprint")
    if name is None or expected is None:
        raise ValueError(
            f"The captioner's configuration has {kind}_model_name_or_path={name!r} and "
            f"{kind}_model_fingerprint={expected!r}, so its frozen {kind} model cannot be brought back: "
            "create captioners with ITuningForCaptioning.from_vision_text_pretrained(vision, text)."
        )
    where = f"{kind}_model_name_or_path={name!r}" + (f" at revision {revision!r}" if revision else "")
    moved = f"If it has moved, give its place: from_pretrained(..., {kind}_model_name_or_path=...)."
    with _naming_the_backbone(kind, where, moved):
        _check_place(name)
        found = fingerprint(kind, name, revision=revision, **hub_kwargs)
    if found != expected:
        raise ValueError(
            f"The {kind} model found at {where} is not the one this adapter was trained on: its weights "
            f"have fingerprint {found}, wanted {expected}. Give the right one with "
            f"from_pretrained(..., {kind}_model_name_or_path=...)."
        )
    return name, revision


def load_pretrained_backbone(kind: str, name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a backbone by its own class and refuse one that is incomplete.

    Args:
        kind: "vision" or "text".
        name: A local folder or a Hub id. Of a full CLIP the vision part is taken.
        **kwargs: For the backbone's own `from_pretrained`. Attention is "sdpa" unless they say otherwise:
            a stored configuration does not choose, since Transformers would run a kernel that it names.

    Raises:
        ValueError: if weights are missing from the checkpoint, or have other shapes than its
            configuration says. Transformers would leave them at random values.
        OSError: if the backbone is not there.
    """
    model_class = _CLASSES[kind]
    kwargs["attn_implementation"] = kwargs.get("attn_implementation") or "sdpa"
    with _naming_the_backbone(kind, repr(name)), building, _without_load_report():
        # Mismatches are ignored there to be named here; its own error refers to the report that is kept back.
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    broken = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if broken:
        raise ValueError(
            f"The {kind} model at {name!r} lacks {len(broken)} of its weights, or has them in other "
            f"shapes (first: {broken[:3]}): the checkpoint is incomplete or of another architecture than "
            f"{model_class.__name__}."
        )
    return model


def load_backbone_config(kind: str, name: str, **hub_kwargs: Any) -> Any:
    """Load a backbone's configuration alone; of a full CLIP, its vision part's.

    Raises:
        OSError: if it is not there.
    """
    with _naming_the_backbone(kind, repr(name)):
        _check_place(name)
        return _CLASSES[kind].config_class.from_pretrained(name, **hub_kwargs)


@torch.no_grad()
def encode_images(vision_model: Any, pixel_values: torch.Tensor, feature_layer: int) -> torch.Tensor:
    """Encode images, without building a graph.

    Args:
        vision_model: A CLIP vision encoder.
        pixel_values: Shape (num_images, 3, image_size, image_size).
        feature_layer: Which of its hidden states is wanted; see `vision_feature_layer` of [`ITuningConfig`].

    Returns:
        The hidden state, of shape (num_images, N, d_v), the class token first.

    Raises:
        ValueError: for pixels of another shape than the encoder's.
    """
    config = vision_model.config
    check_pixel_values(pixel_values, config.num_channels, config.image_size)
    if feature_layer == -1:
        return vision_model(pixel_values).last_hidden_state
    return vision_model(pixel_values, output_hidden_states=True).hidden_states[feature_layer]


def check_in_memory(kind: str, model: PreTrainedModel, config: ITuningConfig, **hub_kwargs: Any) -> None:
    """Refuse a backbone in memory that is not the one that the configuration records.

    In the precision of its file its own weights say so; in another one what lies at the recorded place does.

    Args:
        kind: "vision" or "text".
        model: The backbone in memory.
        config: Holds the place, the revision and the fingerprint.
        **hub_kwargs: `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if it is in another precision, and its place is not there.
        TypeError: if it is of another class.
        ValueError: with the first weight or field that differs, or if nothing is recorded.
    """
    if not isinstance(model, _CLASSES[kind]):
        raise TypeError(
            f"{kind}_model is a {type(model).__name__}, expected the {_CLASSES[kind].__name__} that the "
            "adapter was trained on."
        )
    _check_architecture(kind, model, config, "in memory")
    own = model_fingerprint(kind, model)
    if own is None or own != getattr(config, f"{kind}_model_fingerprint"):
        name, revision = _find_recorded(kind, config, **hub_kwargs)
        check_weights_unchanged(kind, model, name, revision=revision, **hub_kwargs)


def _check_architecture(kind: str, model: PreTrainedModel, config: ITuningConfig, where: str) -> None:
    recorded: Any = getattr(config, f"{kind}_config")
    for field in _ARCHITECTURE[kind]:
        own, wanted = getattr(model.config, field), getattr(recorded, field)
        if own != wanted:
            raise ValueError(
                f"The {kind} model {where} has {field}={own!r}, wanted {wanted!r}: it is not the one that "
                "the adapter was trained on."
            )


def is_local(name: str) -> bool:
    """Tell a folder of this machine, there or not, from an id on the Hub."""
    try:
        validate_repo_id(name)
    except ValueError:
        return True
    return os.path.isdir(name)


def refuse_local_backbones(config: ITuningConfig) -> None:
    """Refuse to put a captioner on the Hub whose backbones nobody else has.

    Raises:
        ValueError: naming those that lie in local folders, or if they are stored nowhere at all.
    """
    names = {f"{kind}_model_name_or_path": getattr(config, f"{kind}_model_name_or_path") for kind in _CLASSES}
    if None in names.values():
        raise ValueError(
            "This captioner's backbones were built in memory and are stored nowhere, so that nobody could "
            "load it. Create it with from_vision_text_pretrained over models of the Hub, and push that."
        )
    if local := {field: name for field, name in names.items() if is_local(name)}:
        raise ValueError(
            f"This captioner's backbones are local folders, which nobody else has: {local}. Load it with the "
            "same models' ids on the Hub, from_pretrained(folder, vision_model_name_or_path=..., "
            "text_model_name_or_path=...), and push that."
        )


def split_device_map(device_map: Any, kinds: Sequence[str] = tuple(_CLASSES)) -> dict[str, Any]:
    """Split a device map over the captioner into one for each backbone.

    Args:
        device_map: What `from_pretrained` takes: None, a device, "auto" and its like, or a dictionary
            from module names of the captioner to devices.
        kinds: The backbones that are loaded.

    Raises:
        ValueError: if a dictionary leaves a backbone without a device.
    """
    if not isinstance(device_map, Mapping):
        return dict.fromkeys(kinds, device_map)
    maps: dict[str, Any] = {}
    for kind in kinds:
        prefix = f"{kind}_model"
        part = {
            key.removeprefix(prefix).removeprefix("."): device
            for key, device in device_map.items()
            if key == prefix or key.startswith(f"{prefix}.")
        }
        if not part and "" not in device_map:
            raise ValueError(
                f"device_map has no place for {prefix!r}: it names {sorted(device_map)}; give "
                f"'{prefix}', modules inside it, or '' for everything."
            )
        maps[kind] = part or {"": device_map[""]}
    return maps


def _check_place(name: str) -> None:
    """Tell a missing local folder from an id on the Hub, before the Hub is asked for it."""
    if os.path.isabs(name) and not os.path.isdir(name):
        raise OSError("there is no such folder.")


def _hub_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("token", "cache_dir", "local_files_only", "force_download")
    return {name: kwargs[name] for name in names if name in kwargs}


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep this thread's loading report off the screen.

    What it would say of a full CLIP (two dozen unexpected keys, its text half) is no news, and what must
    not happen, missing keys, is made an error here.
    """
    thread, logger = threading.get_ident(), logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextmanager
def _naming_the_backbone(kind: str, where: str, advice: str = "") -> Iterator[None]:
    """Say which backbone it was when one is not found or not readable."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = "was not found" if isinstance(error, OSError) else "is damaged"
        raise OSError(f"The frozen {kind} model {problem} at {where}: {error} {advice}".rstrip()) from error


__all__ = [
    "building",
    "check_in_memory",
    "encode_images",
    "is_local",
    "load_backbone",
    "load_pretrained_backbone",
    "refuse_local_backbones",
]
