"""A captioner's parts out of a PEFT model with the method "ituning".

By the names of its attributes alone: this file is copied into every saved captioner, and needs no PEFT there.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from ..captioner.configuration_ituning import ADAPTER_OPTIONS, ITuningConfig, absolute_if_local
from ..captioner.decoders_ituning import copy_sharing_weights, decoder_family
from ..captioner.pretrained_ituning import check_weights_unchanged, fingerprint, load_pretrained_backbone

PEFT_TYPE = "ITUNING"


def captioner_from_peft(
    captioner_class: Any,
    peft_model: Any,
    vision_model: PreTrainedModel | str | os.PathLike[str],
    adapter_name: str | None,
) -> Any:
    """Build a captioner; see `ITuningForCaptioning.from_peft`."""
    config, vision, text, adapter = parts_from_peft(peft_model, vision_model, adapter_name)
    captioner = captioner_class(config, vision, text)
    captioner.load_adapter_state_dict(adapter, "the PEFT model")
    return captioner.eval()


def parts_from_peft(
    peft_model: Any, vision_model: PreTrainedModel | str | os.PathLike[str], adapter_name: str | None
) -> tuple[ITuningConfig, PreTrainedModel, PreTrainedModel, dict[str, torch.Tensor]]:
    """Take a PEFT model apart; it stays as it is, and the frozen weights are shared.

    Args:
        peft_model: A `PeftModel` with the method "ituning".
        vision_model: The vision encoder, or its place.
        adapter_name: The adapter; the active one by default.

    Returns:
        The captioner's configuration, its vision encoder, its language model without adapters, and the
        adapter's weights under the captioner's names.

    Raises:
        TypeError: if the vision encoder is no encoder, such as one that is not loaded, and no place either.
        ValueError: if that is no such model, or has another head, or several adapters are active, or another
            method is on it, or a backbone is not the one that was recorded.
        OSError: if a backbone is not there any more.
    """
    name, options = _adapter_of(peft_model, adapter_name)
    _refuse_other_heads(peft_model)
    _refuse_other_methods(peft_model)
    vision_model = _vision_model(vision_model, options)
    text_model = copy_sharing_weights(peft_model).unload()
    recorded = (options.vision_model_name_or_path, options.vision_model_revision)
    config = ITuningConfig(
        vision_config=vision_model.config.to_dict(),
        text_config=text_model.config.to_dict(),
        **_origin("vision", vision_model, recorded, options.vision_model_fingerprint),
        **_origin(
            "text",
            text_model,
            (options.base_model_name_or_path, options.revision),
            options.text_model_fingerprint,
        ),
        **{field: getattr(options, field) for field in ADAPTER_OPTIONS},
    )
    family = decoder_family(config.text_config)
    blocks: Any = family.layers(peft_model.get_base_model())
    tensors = {
        f"{family.adapter_prefix(i)}{key}": tensor.detach()
        for i in config.adapter_layers or []
        for key, tensor in blocks[i].ituning_adapter[name].state_dict().items()
    }
    return config, vision_model, text_model, tensors


def _adapter_of(peft_model: Any, name: str | None) -> tuple[str, Any]:
    """Return the name and the configuration of the adapter that is asked for, or of the active one."""
    if not hasattr(peft_model, "get_base_model"):
        raise ValueError(
            f"{type(peft_model).__name__} is no PEFT model: give what get_peft_model or "
            "PeftModel.from_pretrained returned."
        )
    if name is None:
        active = list(peft_model.active_adapters)
        if len(active) != 1:
            raise ValueError(
                f"The adapters {active} are active, and a captioner has one: name it, from_peft(peft_model, "
                "vision_model, adapter_name=...)."
            )
        name = active[0]
    options = peft_model.peft_config.get(name)
    if options is None or options.peft_type != PEFT_TYPE:
        found = {key: str(o.peft_type.value) for key, o in peft_model.peft_config.items()}
        raise ValueError(f"There is no I-Tuning adapter {name!r} on this PEFT model: it has {found}.")
    return name, options


def _vision_model(vision_model: PreTrainedModel | str | os.PathLike[str], options: Any) -> PreTrainedModel:
    if not isinstance(vision_model, (PreTrainedModel, str, os.PathLike)):
        raise TypeError(
            f"vision_model is a {type(vision_model).__name__}, expected the encoder itself, which is a "
            "CLIPVisionModel, or its folder or Hub id."
        )
    if not isinstance(vision_model, PreTrainedModel):
        place = absolute_if_local(vision_model)
        recorded = place == options.vision_model_name_or_path
        revision = options.vision_model_revision if recorded else None
        vision_model = load_pretrained_backbone("vision", place, revision=revision)
    if options.vision_hidden_size != vision_model.config.hidden_size:
        raise ValueError(
            f"The adapter reads features of width {options.vision_hidden_size}, and the vision model gives "
            f"{vision_model.config.hidden_size}: give the encoder that it was trained on."
        )
    return vision_model


def _refuse_other_heads(peft_model: Any) -> None:
    model = peft_model.get_base_model()
    if not isinstance(model, GPT2LMHeadModel):
        raise ValueError(
            f"The adapter is on a {type(model).__name__}, and a captioner's language model is a "
            "GPT2LMHeadModel: load the adapter on that one."
        )


def _refuse_other_methods(peft_model: Any) -> None:
    others = {
        type(module).__name__
        for module in peft_model.get_base_model().modules()
        if hasattr(module, "base_layer") and not hasattr(module, "ituning_adapter")
    }
    if others:
        raise ValueError(
            f"Another PEFT method is on this language model ({sorted(others)}), and a captioner's is frozen "
            "as it was downloaded: merge that one first (merge_and_unload), save the result, and train or "
            "load the I-Tuning adapter on it."
        )


def _origin(
    kind: str, model: PreTrainedModel, recorded: tuple[str | None, str | None], expected: str | None
) -> dict[str, str | None]:
    """Say where a backbone in memory comes from, once it is proved to be what lies there."""
    place = model.name_or_path or recorded[0]
    if not place:  # built in memory
        return {}
    place = absolute_if_local(place)
    revision = getattr(model.config, "_commit_hash", None) or (recorded[1] if place == recorded[0] else None)
    found = fingerprint(kind, place, revision=revision)
    if expected not in (None, found):
        raise ValueError(
            f"The {kind} model at {place!r} is not the one that this adapter was trained on: its weights "
            f"have fingerprint {found}, wanted {expected}."
        )
    check_weights_unchanged(kind, model, place, revision=revision)
    return {
        f"{kind}_model_name_or_path": place,
        f"{kind}_model_revision": revision,
        f"{kind}_model_fingerprint": found,
    }


__all__ = ["captioner_from_peft", "parts_from_peft"]
