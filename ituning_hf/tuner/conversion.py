"""Converts captioners to adapters of the PEFT method "ituning", and adapters to captioners."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..captioner.configuration_ituning import ADAPTER_OPTIONS, ITuningConfig, absolute_if_local
from ..captioner.decoders_ituning import copy_sharing_weights, decoder_family
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import (
    check_weights_unchanged,
    fingerprint,
    is_local,
    load_pretrained_backbone,
    read_adapter_file,
)
from ..captioner.processing_ituning import ITuningProcessor
from ..hub.card import ADAPTER_TEMPLATE
from ..hub.saving import save_captioner
from ..inference.files import holds_peft_adapter
from ..inference.loading import load_model
from ..utils.errors import UserError
from .config import ITuningTunerConfig
from .layer import ADAPTERS
from .registration import PEFT_TYPE

# --- In memory


def to_peft(captioner: ITuningForCaptioning, adapter_name: str = "default") -> PeftModelForCausalLM:
    """Convert a captioner to a PEFT model: its language model, with its adapter under the method "ituning".

    The captioner is not changed. The PEFT model shares its frozen weights and copies the adapter, in its
    precision. It has no vision encoder: the features are passed as `encoder_hidden_states`.

    Args:
        captioner: The captioner.
        adapter_name: The name of the adapter.

    Returns:
        The PEFT model, in evaluation mode, with a trainable adapter.

    Example:
    ```python
    >>> from ituning_hf import ITuningForCaptioning
    >>> from ituning_hf.tuner import to_peft
    >>> captioner = ITuningForCaptioning.from_pretrained("my-captioner")  # doctest: +SKIP
    >>> to_peft(captioner).save_pretrained("my-adapter")  # doctest: +SKIP

    ```
    """
    config = captioner.config
    family = decoder_family(config.text_config)
    text_model = family.without_adapters(captioner.text_model)
    text_model.name_or_path = config.text_model_name_or_path or ""  # PEFT reads it
    peft_config = ITuningTunerConfig(
        base_model_name_or_path=config.text_model_name_or_path or None,
        revision=config.text_model_revision,
        vision_hidden_size=config.vision_config.hidden_size,
        vision_model_name_or_path=config.vision_model_name_or_path,
        vision_model_revision=config.vision_model_revision,
        vision_model_fingerprint=config.vision_model_fingerprint,
        text_model_fingerprint=config.text_model_fingerprint,
        **{name: getattr(config, name) for name in ADAPTER_OPTIONS},
    )
    model = get_peft_model(text_model, peft_config, adapter_name)
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
    name, options = _adapter_of(peft_model, adapter_name)
    base_model = peft_model.get_base_model()
    family = decoder_family(base_model.config)
    _check_language_model(base_model, family.model_class)
    vision_model = _load_vision_model(vision_model, options)
    text_model = copy_sharing_weights(peft_model).unload()
    config = _captioner_config(vision_model, text_model, options)
    layers: Any = family.layers(base_model)
    tensors = {
        f"{family.adapter_prefix(i)}{key}": tensor.detach()
        for i in config.adapter_layers or []
        for key, tensor in layers[i].ituning_adapter[name].state_dict().items()
    }
    captioner = captioner_class(config, vision_model, text_model)
    captioner.load_adapter_state_dict(tensors, "the PEFT model")
    return captioner.eval()


def _adapter_of(peft_model: Any, name: str | None) -> tuple[str, Any]:
    """Return the name and the configuration of the named adapter, or of the active one."""
    if not isinstance(peft_model, PeftModel):
        raise UserError(
            f"{type(peft_model).__name__} is not a PEFT model: give what get_peft_model or "
            "PeftModel.from_pretrained returned."
        )
    if name is None:
        active = list(peft_model.active_adapters)
        if len(active) != 1:
            raise UserError(
                f"The adapters {active} are active, and a captioner has one: from_peft(peft_model, "
                "vision_model, adapter_name=...)."
            )
        name = active[0]
    options: Any = peft_model.peft_config.get(name)
    if options is None or options.peft_type != PEFT_TYPE:
        found = {key: PeftType(config.peft_type).value for key, config in peft_model.peft_config.items()}
        raise UserError(f"There is no I-Tuning adapter {name!r} on this PEFT model: it has {found}.")
    return name, options


def _check_language_model(base_model: Any, expected: type[PreTrainedModel]) -> None:
    if not isinstance(base_model, expected):
        raise UserError(
            f"The adapter is on a {type(base_model).__name__}, and the language model of a captioner is a "
            f"{expected.__name__}: load the adapter on that."
        )
    others = {
        type(module).__name__
        for module in base_model.modules()
        if hasattr(module, "base_layer") and not hasattr(module, "ituning_adapter")
    }
    if others:
        raise UserError(
            f"Another PEFT method is on this language model ({sorted(others)}): merge it first "
            "(merge_and_unload), save the result, and load or train the I-Tuning adapter on that."
        )


def _load_vision_model(
    vision_model: PreTrainedModel | str | os.PathLike[str], options: Any
) -> PreTrainedModel:
    if isinstance(vision_model, str | os.PathLike):
        name = absolute_if_local(vision_model)
        revision = options.vision_model_revision if name == options.vision_model_name_or_path else None
        vision_model = load_pretrained_backbone("vision", name, revision=revision)
    elif not isinstance(vision_model, PreTrainedModel):
        raise TypeError(
            f"vision_model is a {type(vision_model).__name__}, expected a vision encoder, its folder or its "
            "Hub id."
        )
    if options.vision_hidden_size != vision_model.config.hidden_size:
        raise UserError(
            f"The adapter reads features of width {options.vision_hidden_size}, and the vision model has "
            f"width {vision_model.config.hidden_size}: give the encoder that the adapter was trained on."
        )
    return vision_model


def _captioner_config(
    vision_model: PreTrainedModel, text_model: PreTrainedModel, options: Any
) -> ITuningConfig:
    sources = _recorded_sources(options)
    return ITuningConfig(
        vision_config=vision_model.config.to_dict(),
        text_config=text_model.config.to_dict(),
        **_source_fields("vision", vision_model, sources["vision"], options.vision_model_fingerprint),
        **_source_fields("text", text_model, sources["text"], options.text_model_fingerprint),
        **{field: getattr(options, field) for field in ADAPTER_OPTIONS},
    )


def _recorded_sources(options: Any) -> dict[str, tuple[str | None, str | None]]:
    """Return the names and revisions of the backbones in an adapter's configuration."""
    return {
        "vision": (options.vision_model_name_or_path, options.vision_model_revision),
        "text": (options.base_model_name_or_path, options.revision),
    }


def _source_fields(
    backbone: str, model: PreTrainedModel, recorded: tuple[str | None, str | None], expected: str | None
) -> dict[str, str | None]:
    """Return a backbone's source for the configuration, after a comparison of its weights with the source."""
    name = model.name_or_path or recorded[0]
    if not name:  # built in memory
        return {}
    name = absolute_if_local(name)
    revision = getattr(model.config, "_commit_hash", None) or (recorded[1] if name == recorded[0] else None)
    found = fingerprint(backbone, name, revision=revision)
    if expected not in (None, found):
        raise UserError(
            f"The {backbone} model {name!r} is not the one that this adapter was trained on: its weights "
            f"have fingerprint {found}, expected {expected}."
        )
    check_weights_unchanged(backbone, model, name, revision=revision)
    return {
        f"{backbone}_model_name_or_path": name,
        f"{backbone}_model_revision": revision,
        f"{backbone}_model_fingerprint": found,
    }


# --- On disk


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    vision_model: str | os.PathLike[str] | None = None,
    text_model: str | os.PathLike[str] | None = None,
) -> Literal["adapter", "captioner"]:
    """Convert a saved captioner to a PEFT adapter, or an adapter to a captioner. The weights do not change.

    Args:
        source: The folder or Hub id of the captioner or adapter.
        output: A new or empty folder.
        revision: The source's revision on the Hub.
        vision_model: The vision encoder's folder or Hub id, in place of the recorded one.
        text_model: The language model's, in place of the recorded one.

    Returns:
        What was written to `output`.

    Raises:
        OSError: if `output` is not empty, or the source or a backbone does not exist.
        ValueError: if the source is neither, or damaged, or a backbone is not the one that it was trained on.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists: give a new or empty folder.")
    name = os.fspath(source)
    if not holds_peft_adapter(name, revision):
        moved = {"vision_model_name_or_path": vision_model, "text_model_name_or_path": text_model}
        names = {field: os.fspath(path) for field, path in moved.items() if path is not None}
        _write_adapter(load_model(name, "cpu", revision=revision, **names), target)
        return "adapter"
    config = _read_config(name, revision)
    if vision_model is not None:
        config.vision_model_name_or_path, config.vision_model_revision = os.fspath(vision_model), None
    if text_model is not None:
        config.base_model_name_or_path, config.revision = os.fspath(text_model), None
    _write_captioner(name, config, target, revision)
    return "captioner"


def _read_config(name: str, revision: str | None) -> ITuningTunerConfig:
    try:
        config = PeftConfig.from_pretrained(name, revision=revision)
        method = PeftType(config.peft_type).value
    except (ValueError, TypeError, KeyError) as error:  # PEFT does not check the file
        raise UserError(
            f"The adapter_config.json of {name!r} cannot be used ({type(error).__name__}: {error}): save the "
            "adapter again."
        ) from error
    if not isinstance(config, ITuningTunerConfig):
        raise UserError(f"{name!r} is an adapter of {method}, expected one of {PEFT_TYPE!r}.")
    return config


def _write_adapter(captioner: ITuningForCaptioning, target: Path) -> None:
    to_peft(captioner).save_pretrained(str(target))
    card = ModelCard.load(target / REPOCARD_NAME)  # PEFT's text is a form, its metadata are used
    vision, text = captioner.config.vision_model_name_or_path, captioner.config.text_model_name_or_path
    if is_local(text):  # PEFT took the path for a Hub id
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags if text not in tag]
    card = ModelCard.from_template(
        card.data,
        template_path=str(ADAPTER_TEMPLATE),
        width=captioner.config.vision_config.hidden_size,
        layer=captioner.config.vision_feature_layer,
        vision="a local vision encoder" if is_local(vision) else f"`{vision}`",
    )
    card.save(target / REPOCARD_NAME)


def _write_captioner(name: str, config: ITuningTunerConfig, target: Path, revision: str | None) -> None:
    sources: Any = _recorded_sources(config)
    for backbone, (source, _) in sources.items():
        if source is None:
            raise UserError(
                f"The adapter {name!r} does not name its {backbone} model: give --{backbone}_model "
                f"({backbone}_model=... in Python)."
            )
    # PEFT would open a pickle, raise the precision to fp32 and initialize missing weights randomly.
    stored = read_adapter_file(cached_file(name, SAFETENSORS_WEIGHTS_NAME, revision=revision))
    vision, text = (
        load_pretrained_backbone(backbone, source, revision=revision)
        for backbone, (source, revision) in sources.items()
    )
    tensors = {
        key.replace("base_model.model.", "text_model.", 1).replace(f".{ADAPTERS}.", ".adapter."): tensor
        for key, tensor in stored.items()
    }
    captioner = ITuningForCaptioning(_captioner_config(vision, text, config), vision, text)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in stored.values()))
    captioner.load_adapter_state_dict(tensors, name, dtype)
    (vision_name, vision_revision), (text_name, text_revision) = sources.values()
    processor = ITuningProcessor.from_vision_text_pretrained(
        vision_name, text_name, vision_revision=vision_revision, text_revision=text_revision
    )
    save_captioner(captioner.eval(), processor, target)


__all__ = ["captioner_from_peft", "convert", "to_peft"]
