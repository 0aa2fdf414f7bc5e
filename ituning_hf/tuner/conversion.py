"""Convert captioners to adapters of the PEFT method "ituning", and adapters to captioners."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..captioner.backbones_ituning import Backbone
from ..captioner.configuration_ituning import ITuningConfig, absolute_if_local, reading
from ..captioner.decoder_layers_ituning import copy_sharing_weights
from ..captioner.decoders_ituning import decoder_family
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import read_adapter_file
from ..captioner.processing_ituning import ITuningProcessor
from ..hub.saving import save_captioner
from ..inference.loading import holds_peft_adapter, load_model
from ..utils.errors import UserError
from .config import PEFT_TYPE, ITuningTunerConfig
from .layer import ADAPTERS

# The names of common fields in a captioner's configuration and in an adapter's.
_FIELDS = {name: name for name in ITuningConfig.__annotations__ if hasattr(ITuningTunerConfig, name)}
_FIELDS |= {"text_model_name_or_path": "base_model_name_or_path", "text_model_revision": "revision"}

# --- In memory


def to_peft(captioner: ITuningForCaptioning, adapter_name: str = "default") -> PeftModelForCausalLM:
    """Convert a captioner to a PEFT model of its language model, with an adapter of the method "ituning".

    The captioner is not changed. The PEFT model shares its frozen weights and has a copy of the adapter, of
    the same dtype. It has no vision encoder: the image features are passed as `visual_features`.

    Args:
        captioner: The captioner.
        adapter_name: The name of the adapter.

    Returns:
        The PEFT model, in evaluation mode, with a trainable adapter.

    Raises:
        CaptionerError: if a backbone was changed, such as by a merged LoRA, which PEFT would not save.

    Example:
    ```python
    >>> from ituning_hf import ITuningForCaptioning
    >>> from ituning_hf.tuner import to_peft
    >>> captioner = ITuningForCaptioning.from_pretrained("my-captioner")  # doctest: +SKIP
    >>> to_peft(captioner).save_pretrained("my-adapter")  # doctest: +SKIP

    ```
    """
    config = captioner.config
    captioner._check_backbones()
    family = decoder_family(config.text_config)
    text_model = family.without_adapters(captioner.text_model)
    text_model.name_or_path = config.text_model_name_or_path or ""  # PEFT reads it
    fields = {theirs: getattr(config, own) for own, theirs in _FIELDS.items()}
    # get_peft_model would compare it with the files, and raise an error if they have changed since loading.
    fingerprint = fields.pop("text_model_fingerprint")
    peft_config = ITuningTunerConfig(vision_hidden_size=config.vision_config.hidden_size, **fields)
    model = get_peft_model(text_model, peft_config, adapter_name)
    model.peft_config[adapter_name].text_model_fingerprint = fingerprint
    layers: Any = family.layers(text_model)
    for i, adapter in captioner.adapters().items():
        copied = layers[i].ituning_adapter[adapter_name]
        copied.to(adapter.q_proj.weight.dtype).load_state_dict(adapter.state_dict())
    return model.eval()


def captioner_from_peft(
    captioner_class: Any,
    peft_model: Any,
    vision_model: PreTrainedModel | str | os.PathLike[str],
    adapter_name: str | None,
) -> Any:
    """Convert a PEFT model to a captioner; see `ITuningForCaptioning.from_peft`."""
    name, fields = _adapter_of(peft_model, adapter_name)
    if isinstance(vision_model, str | os.PathLike):
        _set_source(fields, "vision", vision_model)
        vision_model = _load_backbone(fields, "vision")
    tensors = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    text_model = copy_sharing_weights(peft_model).unload()
    return _build_captioner(captioner_class, vision_model, text_model, fields, tensors, "the PEFT model")


def _adapter_of(peft_model: Any, name: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name of an adapter, by default the active one, and its fields for a captioner."""
    if not isinstance(peft_model, PeftModel):
        raise UserError(
            f"{type(peft_model).__name__} is not a PEFT model: pass the result of get_peft_model or "
            "PeftModel.from_pretrained."
        )
    if name is None:
        active = list(peft_model.active_adapters)
        if len(active) != 1:
            raise UserError(
                f"The adapters {active} are active: select one with from_peft(..., adapter_name=...)."
            )
        name = active[0]
    config = peft_model.peft_config.get(name)
    if not isinstance(config, ITuningTunerConfig):
        raise UserError(
            f"There is no I-Tuning adapter {name!r}; the adapters are {sorted(peft_model.peft_config)}."
        )
    return name, _captioner_fields(config)


def _captioner_fields(config: ITuningTunerConfig) -> dict[str, Any]:
    return {own: getattr(config, theirs) for own, theirs in _FIELDS.items()}


def _set_source(fields: dict[str, Any], backbone: str, path: str | os.PathLike[str]) -> None:
    """Set the source of a backbone. The recorded revision does not apply to another source."""
    name = absolute_if_local(path)
    if name != fields[f"{backbone}_model_name_or_path"]:
        fields |= {f"{backbone}_model_name_or_path": name, f"{backbone}_model_revision": None}


def _load_backbone(fields: dict[str, Any], backbone: str) -> PreTrainedModel:
    name, revision = fields[f"{backbone}_model_name_or_path"], fields[f"{backbone}_model_revision"]
    return Backbone(backbone, name, revision).load()


def _build_captioner(
    captioner_class: Any,
    vision_model: PreTrainedModel,
    text_model: PreTrainedModel,
    fields: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    name: str,
) -> Any:
    """Build a captioner from loaded backbones and an adapter's weights, named as in PEFT's files."""
    for backbone, model in (("vision", vision_model), ("text", text_model)):
        fields |= _check_source(fields, backbone, model)
    configs = {"vision_config": vision_model.config.to_dict(), "text_config": text_model.config.to_dict()}
    captioner = captioner_class(ITuningConfig(**fields | configs), vision_model, text_model)
    own = {
        key.replace("base_model.model.", "text_model.", 1).replace(f".{ADAPTERS}.", ".adapter."): tensor
        for key, tensor in tensors.items()
    }
    captioner.load_adapter_state_dict(own, name)
    return captioner.eval()


def _check_source(fields: dict[str, Any], backbone: str, model: PreTrainedModel) -> dict[str, Any]:
    """Check a backbone against its checkpoint and recorded fingerprint; return the fields of its source."""
    keys = [f"{backbone}_model_{field}" for field in ("name_or_path", "revision", "fingerprint")]
    recorded_name, recorded_revision, expected = (fields[key] for key in keys)
    name = getattr(model, "name_or_path", None) or recorded_name
    if not name:  # built in memory
        return {}
    name = absolute_if_local(name)
    revision = getattr(model.config, "_commit_hash", None)
    if revision is None and name == recorded_name:
        revision = recorded_revision
    source = Backbone(backbone, name, revision)
    source.check_fingerprint(expected)
    source.check_unchanged(model)
    return source.config_fields()


# --- On disk


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    vision_model: str | os.PathLike[str] | None = None,
    text_model: str | os.PathLike[str] | None = None,
) -> Literal["adapter", "captioner"]:
    """Convert a saved captioner to a PEFT adapter, or a PEFT adapter to a captioner, losslessly.

    Args:
        source: The folder or Hub id of the captioner or adapter.
        output: A new or empty folder.
        revision: The source's revision on the Hub.
        vision_model: The folder or Hub id of the vision encoder, instead of the recorded one.
        text_model: The folder or Hub id of the language model, instead of the recorded one.

    Returns:
        The kind of model that was written to `output`.

    Raises:
        OSError: if `output` is not empty, or the source or a backbone does not exist.
        ValueError: if the source is neither or is damaged, or if a backbone is not the one used in training.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder: give a new or empty one.")
    name = os.fspath(source)
    if not holds_peft_adapter(name, revision):
        captioner = load_model(
            name, "cpu", revision=revision, vision_model=vision_model, text_model=text_model
        )
        to_peft(captioner).save_pretrained(str(target))
        return "adapter"
    fields = _captioner_fields(_read_config(name, revision))
    for backbone, path in (("vision", vision_model), ("text", text_model)):
        if path is not None:
            _set_source(fields, backbone, path)
    _write_captioner(name, fields, target, revision)
    return "captioner"


def _read_config(name: str, revision: str | None) -> ITuningTunerConfig:
    with reading(f"The adapter_config.json of {name!r}"):  # PEFT does not check the file
        config = PeftConfig.from_pretrained(name, revision=revision)
    if not isinstance(config, ITuningTunerConfig):
        raise UserError(f"{name!r} is an adapter of the method {config.peft_type}, expected {PEFT_TYPE}.")
    return config


def _write_captioner(name: str, fields: dict[str, Any], target: Path, revision: str | None) -> None:
    for backbone in ("vision", "text"):
        if fields[f"{backbone}_model_name_or_path"] is None:
            raise UserError(
                f"The adapter {name!r} does not name its {backbone} model: give --{backbone}_model "
                f"({backbone}_model=... in Python)."
            )
    # PEFT would open pickles, cast the weights to fp32 and initialize missing weights randomly.
    tensors = read_adapter_file(cached_file(name, SAFETENSORS_WEIGHTS_NAME, revision=revision))
    vision, text = _load_backbone(fields, "vision"), _load_backbone(fields, "text")
    captioner = _build_captioner(ITuningForCaptioning, vision, text, fields, tensors, name)
    processor = ITuningProcessor.from_vision_text_pretrained(
        fields["vision_model_name_or_path"],
        fields["text_model_name_or_path"],
        vision_revision=fields["vision_model_revision"],
        text_revision=fields["text_model_revision"],
    )
    save_captioner(captioner, processor, target)


__all__ = ["captioner_from_peft", "convert", "to_peft"]
