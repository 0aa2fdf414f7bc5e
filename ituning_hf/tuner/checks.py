"""What the PEFT method refuses, before anything of a model is changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel, TaskType
from torch import nn
from transformers import GenerationConfig

from ..captioner.configuration_ituning import absolute_if_local, resolve_adapter
from ..captioner.generation_ituning import check_guidance
from ..captioner.pretrained_ituning import fingerprint
from .image import find_decoders
from .registration import PEFT_TYPE

# Parts of every key on disk. PEFT tells adapters apart by finding their names anywhere in a key.
_PARTS_OF_KEYS = {
    *("base_model", "model", "transformer", "h", "base_layer", "ituning_adapter"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "weight", "bias"),
}
_TASKS = (TaskType.CAUSAL_LM, TaskType.FEATURE_EXTRACTION, None)


def check_name(name: str, configs: Mapping[str, PeftConfig]) -> None:
    """Refuse a name that would mix adapters up.

    Args:
        name: The new adapter's name.
        configs: The adapters on the model, by name.

    Raises:
        ValueError: if PyTorch cannot hold it, it is part of the keys on disk, or another method's adapter on
            the model has it.
    """
    if not name or "." in name or hasattr(nn.ModuleDict(), name) or name in _PARTS_OF_KEYS or name.isdigit():
        raise ValueError(
            f"adapter_name is {name!r}, which is a part of the weights' own names or cannot be one: take "
            "another, such as 'default'."
        )
    if name in configs and configs[name].peft_type != PEFT_TYPE:
        raise ValueError(
            f"The model has an adapter {name!r} of another method already ({type(configs[name]).__name__}): "
            "give the I-Tuning adapter another name, get_peft_model(model, config, adapter_name=...)."
        )


def check_adapter(config: Any, model: nn.Module) -> Any:
    """Refuse a model that cannot take the adapter, and take from it what the options leave at `None`.

    Args:
        config: An [`ITuningTunerConfig`]; it stays as it is, and may be used for another model.
        model: What it is to go into.

    Returns:
        A copy of the configuration in which nothing is left open.

    Raises:
        ValueError: for a model that is not one plain GPT-2, or not the one whose fingerprint is recorded, a
            task that needs another head, or options that do not fit it.
    """
    if config.task_type not in _TASKS:
        raise ValueError(
            f"task_type is {TaskType(config.task_type).value!r}, expected 'CAUSAL_LM', 'FEATURE_EXTRACTION' "
            "or None: that task's new head would neither be trained nor saved with the adapter."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "The model is a PeftModel already, inside which the adapter's weights would get names that fit "
            "no other model: give what is in it, get_peft_model(model.get_base_model(), ...). A LoRA stays "
            "on it."
        )
    decoders = find_decoders(model)
    if len(decoders) != 1 or decoders[0].config.add_cross_attention:
        raise ValueError(
            "The PEFT method 'ituning' goes into one GPT-2 without cross-attention of its own, and "
            f"{type(model).__name__} holds {len(decoders)} GPT-2 decoders"
            f"{' with it' if decoders else ''}: give a plain GPT2LMHeadModel."
        )
    _check_origin(config, model)
    config = copy.copy(config)
    resolve_adapter(config, decoders[0].config)
    return config


def _check_origin(config: Any, model: Any) -> None:
    """Refuse another language model than the recorded one, where what lies at its place can be read."""
    name = getattr(model, "name_or_path", None)  # a module around a GPT-2 has none
    if config.text_model_fingerprint is None or not name:
        return
    place = absolute_if_local(name)
    commit = getattr(model.config, "_commit_hash", None)
    try:
        found = fingerprint("text", place, revision=commit, local_files_only=True)
    except OSError:  # it has moved since it was loaded
        return
    if found != config.text_model_fingerprint:
        raise ValueError(
            f"The language model from {place!r} is not the one that this adapter was trained on: its "
            f"weights have fingerprint {found}, wanted {config.text_model_fingerprint}. To put it there all "
            "the same, set the configuration's text_model_fingerprint to None."
        )


def check_generation(options: Mapping[str, Any], own: GenerationConfig) -> None:
    """Refuse ways to generate in which Transformers calls a model without the image.

    Args:
        options: What `generate` is given.
        own: The model's own generation configuration.

    Raises:
        NotImplementedError: for an assistant model and for classifier-free guidance.
    """
    if options.get("assistant_model") is not None:
        raise NotImplementedError(
            "assistant_model is not supported: Transformers gives it this model's projected images, which "
            "it cannot read. Use prompt_lookup_num_tokens, or no assistant."
        )
    given = options.get("generation_config") or own
    check_guidance(options.get("guidance_scale", given.guidance_scale))


__all__ = ["check_adapter", "check_generation", "check_name"]
