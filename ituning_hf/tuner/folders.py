"""A saved captioner to a saved PEFT adapter, and back."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType, load_peft_weights
from safetensors import SafetensorError
from transformers.utils import cached_file

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import is_local, load_pretrained_backbone
from ..captioner.processing_ituning import ITuningProcessor
from ..hub.saving import save_captioner
from ..inference.files import holds_peft_adapter
from ..inference.loading import load_model
from .config import ITuningTunerConfig
from .conversion import to_peft

_ADAPTER_CARD = """
# An I-Tuning adapter

Cross-attention from a frozen GPT-2 to the features of a frozen vision encoder, as an adapter of the PEFT
method "ituning", which the package `ituning_hf` brings.

```python
import ituning_hf  # PEFT knows the method from here on
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/or/id")
model.generate(encoder_hidden_states=features, num_beams=5, max_new_tokens=40)
```

`features`, of shape (num_images, tokens, {width}), is hidden state {layer} of {vision}.
`ituning convert` makes a captioner of the adapter, which takes the images themselves.
"""


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    vision_model: str | os.PathLike[str] | None = None,
    text_model: str | os.PathLike[str] | None = None,
) -> Literal["adapter", "captioner"]:
    """Convert a saved captioner to a PEFT adapter, or an adapter to a captioner; the weights stay the same.

    Args:
        source: Either's folder or Hub id.
        output: A new or empty folder.
        revision: The source's revision on the Hub.
        vision_model: The vision encoder's folder or Hub id, in place of the recorded one.
        text_model: The language model's, in place of the recorded one.

    Returns:
        What was written to `output`.

    Raises:
        FileExistsError: if `output` has something in it.
        OSError: if the source or a backbone is not there, or an adapter's weights are damaged.
        ValueError: if the source is neither, or an adapter's configuration is damaged, or its weights are not
            those that the configuration describes, or a backbone is not the one it was trained on.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: give a folder that is new or empty.")
    name = os.fspath(source)
    if not holds_peft_adapter(name, revision):  # if it is no captioner either, loading it says so
        moved = {"vision_model_name_or_path": vision_model, "text_model_name_or_path": text_model}
        places = {field: os.fspath(place) for field, place in moved.items() if place is not None}
        _write_adapter(load_model(name, "cpu", revision=revision, **places), target)
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
    except (ValueError, TypeError, KeyError) as error:  # PEFT looks at nothing before it uses it
        raise ValueError(
            f"The adapter_config.json of {name!r} cannot be used ({type(error).__name__}: {error}): save the "
            "adapter again."
        ) from error
    if not isinstance(config, ITuningTunerConfig):
        raise ValueError(f"{name!r} is an adapter of {method}, expected one of 'ITUNING'.")
    return config


def _write_adapter(captioner: ITuningForCaptioning, target: Path) -> None:
    to_peft(captioner).save_pretrained(str(target))
    card = ModelCard.load(target / REPOCARD_NAME)  # PEFT's metadata is right; its text is a form to fill in
    vision, text = captioner.config.vision_model_name_or_path, captioner.config.text_model_name_or_path
    if is_local(text):  # which PEFT took for an id on the Hub, and is nobody else's business
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags if text not in tag]
    card.text = _ADAPTER_CARD.format(
        width=captioner.config.vision_config.hidden_size,
        layer=captioner.config.vision_feature_layer,
        vision="a local vision encoder" if is_local(vision) else f"`{vision}`",
    )
    card.save(target / REPOCARD_NAME)


def _write_captioner(name: str, config: ITuningTunerConfig, target: Path, revision: str | None) -> None:
    vision_name = _recorded("vision", config.vision_model_name_or_path, name)
    text_name = _recorded("text", config.base_model_name_or_path, name)
    stored = _read_adapter(name, revision)
    vision = load_pretrained_backbone("vision", vision_name, revision=config.vision_model_revision)
    text = load_pretrained_backbone("text", text_name, revision=config.revision)
    peft_model = PeftModel.from_pretrained(text, name, config=config, revision=revision)
    _check_complete(name, stored, peft_model)
    captioner = ITuningForCaptioning.from_peft(peft_model, vision)
    # PEFT raised the adapter to fp32, where what was stored in less is still exact.
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in stored.values()))
    for adapter in captioner.adapters().values():
        adapter.to(dtype)
    processor = ITuningProcessor.from_vision_text_pretrained(
        vision_name, text_name, vision_revision=config.vision_model_revision, text_revision=config.revision
    )
    save_captioner(captioner, processor, target)


def _read_adapter(name: str, revision: str | None) -> dict[str, torch.Tensor]:
    try:
        # Named, since PEFT opens a pickle where there is none.
        cached_file(name, SAFETENSORS_WEIGHTS_NAME, revision=revision)
        return load_peft_weights(name, device="cpu", revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"The weights of the adapter {name!r} are missing or damaged: {error}") from error


def _check_complete(name: str, stored: dict[str, torch.Tensor], peft_model: PeftModel) -> None:
    """Refuse weights that are not the whole adapter and nothing else: PEFT draws what is missing."""
    expected = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"The weights of the adapter {name!r} are not those that its configuration describes: "
            f"{len(missing)} are missing {missing[:2]}, {len(unexpected)} do not belong {unexpected[:2]}. "
            "Save the adapter again."
        )


def _recorded(kind: str, place: str | None, name: str) -> str:
    if place is None:
        raise ValueError(
            f"The adapter {name!r} does not say which {kind} model it was trained on: give {kind}_model "
            f"(--{kind}_model)."
        )
    return place


__all__ = ["convert"]
