"""What the PEFT method refuses, before anything of a model is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from ..configuration_ituning import resolve_adapter
from .image import find_decoders
from .registration import PEFT_TYPE

# Parts of every key on disk. PEFT tells adapters apart by finding their names anywhere in a key.
_PARTS_OF_KEYS = {
    *("base_model", "model", "transformer", "h", "base_layer", "ituning_adapter"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "weight", "bias"),
}


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


def check_adapter(config: Any, model: nn.Module) -> None:
    """Refuse a model that cannot take the adapter, and take from it what the options leave at `None`.

    Args:
        config: An [`ITuningTunerConfig`]; what is `None` is resolved in place.
        model: What it is to go into.

    Raises:
        ValueError: for a model that is not one plain GPT-2, or options that do not fit it.
    """
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
    resolve_adapter(config, decoders[0].config)


__all__ = ["check_adapter", "check_name"]
