"""A captioner's adapter as a PEFT adapter; the way back is `ITuningForCaptioning.from_peft`."""

from __future__ import annotations

from typing import Any

from peft import PeftModelForCausalLM, get_peft_model

from ..captioner.configuration_ituning import ADAPTER_OPTIONS
from ..captioner.decoders_ituning import decoder_family
from ..captioner.modeling_ituning import ITuningForCaptioning
from .config import ITuningTunerConfig


def to_peft(captioner: ITuningForCaptioning, adapter_name: str = "default") -> PeftModelForCausalLM:
    """Make a PEFT model of a captioner: its language model, with its adapter under the method "ituning".

    The captioner stays as it is. The frozen weights are shared with it, the adapter's are copied, in their
    precision. The vision encoder is left out: its features are given as `encoder_hidden_states`.

    Args:
        captioner: The captioner.
        adapter_name: The name the adapter gets.

    Returns:
        The PEFT model, in evaluation mode, with the adapter trainable.

    Example:
    ```python
    >>> from ituning_hf import ITuningForCaptioning
    >>> from ituning_hf.tuner import to_peft
    >>> captioner = ITuningForCaptioning.from_pretrained("my-captioner")  # doctest: +SKIP
    >>> to_peft(captioner).save_pretrained("my-adapter")  # doctest: +SKIP

    ```
    """
    family = decoder_family(captioner.config.text_config)
    text_model = family.without_adapters(captioner.text_model)
    blocks = family.layers(text_model)
    text_model.name_or_path = captioner.config.text_model_name_or_path or ""  # where PEFT looks
    model = get_peft_model(text_model, _peft_config(captioner), adapter_name)
    for i, adapter in captioner.adapters().items():
        layer: Any = blocks[i]
        copied = layer.ituning_adapter[adapter_name]
        copied.to(adapter.q_proj.weight.dtype).load_state_dict(adapter.state_dict())
    return model.eval()


def _peft_config(captioner: ITuningForCaptioning) -> ITuningTunerConfig:
    config = captioner.config
    return ITuningTunerConfig(
        base_model_name_or_path=config.text_model_name_or_path or None,
        revision=config.text_model_revision,
        vision_hidden_size=config.vision_config.hidden_size,
        vision_model_name_or_path=config.vision_model_name_or_path,
        vision_model_revision=config.vision_model_revision,
        vision_model_fingerprint=config.vision_model_fingerprint,
        text_model_fingerprint=config.text_model_fingerprint,
        **{name: getattr(config, name) for name in ADAPTER_OPTIONS},
    )


__all__ = ["to_peft"]
