"""The tuner: it puts I-Tuning adapters into a language model. Its import registers the method with PEFT."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from aenum import extend_enum
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn

from ..captioner.adapter_ituning import check_rows
from ..captioner.configuration_ituning import resolve_adapter
from ..captioner.decoders_ituning import DECODER_FAMILIES, decoder_family
from ..captioner.pretrained_ituning import Backbone
from ..utils.errors import UserError
from .config import PEFT_TYPE, ITuningTunerConfig
from .layer import (
    ADAPTERS,
    LAYER_CLASSES,
    ITuningLayer,
    PaddedLMHead,
    active_adapters,
    change_lm_head,
    find_decoders,
    given_text,
    project_image,
    take_image,
)

_LAYER_LISTS = {family.layers_path.rpartition(".")[2] for family in DECODER_FAMILIES.values()}
# PEFT omits from a file the keys that have another adapter's name anywhere.
_PARTS_OF_KEYS = {ADAPTERS, "q_proj", "k_proj", "v_proj", "out_proj", "weight", "bias"}
_PARTS_OF_KEYS |= {part for family in DECODER_FAMILIES.values() for part in family.layers_path.split(".")}


class ITuningTuner(BaseTuner):
    """The PEFT method "ituning" on a frozen language model; `get_peft_model` creates it.

    The image is an argument of `forward` and `generate`: `encoder_hidden_states`, the vision encoder's token
    features of shape (num_images, N, d_v). Rows of text are image-major: with k rows for each image, row i
    belongs to image i // k, and all rows of an image share its keys and values.

    To combine it with a LoRA on the same language model, add the LoRA first, under another name:
    `gpt2.add_adapter(lora_config, "style")` or `inject_adapter_in_model(lora_config, gpt2, "style")`, then
    `get_peft_model(gpt2, ...)`. Both compute, train and are disabled together; `unload()` leaves the LoRA,
    which can then be saved. In the other order PEFT does not find LoRA's target modules in adapted layers.

    Args:
        model: The language model.
        peft_config: The configuration, or one for each adapter name.
        adapter_name: The adapter's name.
        **kwargs: For PEFT's `BaseTuner`.

    Raises:
        ValueError: for an unsupported model, or options that cannot be used. The model is then unchanged.

    Example:
    ```python
    >>> import torch
    >>> from peft import get_peft_model
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from ituning_hf.tuner import ITuningTunerConfig
    >>> gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=20, n_layer=3, n_head=5, vocab_size=97, n_positions=32,
    ...                                   bos_token_id=96, eos_token_id=96))
    >>> model = get_peft_model(gpt2, ITuningTunerConfig(vision_hidden_size=24)).eval()
    >>> model.print_trainable_parameters()
    trainable params: 2,790 || all params: 20,590 || trainable%: 13.5503
    >>> images = torch.randn(2, 10, 24)  # two images of ten tokens
    >>> model.generate(encoder_hidden_states=images, num_beams=3, min_new_tokens=4, max_new_tokens=4).shape
    torch.Size([2, 5])

    ```
    """

    prefix: str = "ituning_"
    tuner_layer_cls = ITuningLayer
    target_module_mapping: dict[str, list[str]] = {}  # the configuration names the layers

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        **kwargs: Any,
    ) -> None:
        # PEFT next adds the configuration to those that the model already has.
        other = getattr(model, "peft_config", {}).get(adapter_name)
        if other is not None and other.peft_type != PEFT_TYPE:
            raise UserError(
                f"The model has an adapter {adapter_name!r} of another method ({type(other).__name__}): "
                "choose another name, get_peft_model(model, config, adapter_name=...)."
            )
        if isinstance(model, PeftModel):
            raise UserError(
                "The model is a PeftModel, which would become part of the weights' names: give its base "
                "model, get_peft_model(model.get_base_model(), ...). A LoRA stays on it."
            )
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, or replace the one of that name."""
        if adapter_name in _PARTS_OF_KEYS or adapter_name.isdigit():
            raise UserError(f"adapter_name is {adapter_name!r}, a part of weight names: choose another name.")
        self.peft_config[adapter_name] = resolve_config(self.peft_config[adapter_name], model)
        for module in model.modules():
            if isinstance(module, ITuningLayer) and adapter_name in module.ituning_adapter:
                del module.ituning_adapter[adapter_name]
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        *_, parent, index = ("", *key.split("."))
        return parent in _LAYER_LISTS and index.isdigit() and int(index) in peft_config.adapter_layers

    def _create_and_replace(  # type: ignore[override]
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, **_: Any
    ) -> None:
        if isinstance(target, ITuningLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            setattr(parent, target_name, LAYER_CLASSES[type(target)](target, adapter_name, peft_config))

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        for decoder in find_decoders(model):
            if take_image not in decoder._forward_pre_hooks.values():
                decoder.register_forward_pre_hook(take_image, with_kwargs=True)
        change_lm_head(model, nn.Linear, PaddedLMHead)

    def unload(self) -> nn.Module:
        """Return the language model without these adapters; adapters of other methods stay."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ITuningLayer):
                self.model.set_submodule(name, module.base_layer)
        for decoder in find_decoders(self.model):
            for key in [key for key, hook in decoder._forward_pre_hooks.items() if hook is take_image]:
                del decoder._forward_pre_hooks[key], decoder._forward_pre_hooks_with_kwargs[key]
        change_lm_head(self.model, PaddedLMHead, nn.Linear)
        others = {name: c for name, c in self.peft_config.items() if name not in self._own_adapters()}
        if others:
            self.model.peft_config = others
        elif hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "An I-Tuning adapter cannot be merged: it attends to the image, which no change of the frozen "
            "weights can compute. Keep the adapter, or remove it with unload()."
        )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or several, whose outputs are summed; other methods' stay as they are."""
        self._check_own([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; without an active one left, the first of the others by name becomes active."""
        self._check_own([adapter_name])
        before = self.active_adapters
        super().delete_adapter(adapter_name)
        # PEFT lets each layer choose, and not every adapter is in every layer.
        self.active_adapter = [name for name in before if name != adapter_name]
        if not self.active_adapter:
            self.set_adapter(sorted(self._own_adapters())[:1])

    def _own_adapters(self) -> list[str]:
        return [name for name, config in self.peft_config.items() if config.peft_type == PEFT_TYPE]

    def _check_own(self, names: list[str]) -> None:
        if foreign := [name for name in names if name not in self._own_adapters()]:
            raise UserError(
                f"There is no I-Tuning adapter {foreign} on this model: it has {self._own_adapters()}. "
                "Another method switches its own adapters."
            )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        *_: Any,
        **__: Any,
    ) -> dict[str, torch.Tensor]:
        # PEFT would also take the weights of a LoRA, which has its own file.
        return {key: tensor for key, tensor in state_dict.items() if f".{ADAPTERS}.{adapter_name}." in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the name second to last, where this adapter has the names of its modules.
        return key.replace(f".{ADAPTERS}.{adapter_name}.", f".{ADAPTERS}.")

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text for images; their keys and values are projected once for all steps and beams.

        Args:
            inputs: Prompts, left-padded, of shape (num_images * k, T), image-major; also as `input_ids`.
                Without prompts, each image gets one text that starts with the begin token.
            encoder_hidden_states: The images, of shape (num_images, N, d_v).
            **kwargs: For `GenerationMixin.generate`. Classifier-free guidance is not supported.

        Raises:
            ValueError: if there is no image, the rows cannot be divided evenly among the images, or there is
                neither a prompt nor a begin token.
        """
        image: Any = encoder_hidden_states
        if image is not None and active_adapters(self.model):
            key_values = project_image(self.model, image)
            prompt = given_text((inputs,), kwargs)
            if prompt is None:  # generation makes as many begin tokens as the mask has rows
                kwargs["attention_mask"] = torch.ones(len(image), 1, dtype=torch.long, device=image.device)
            else:
                check_rows(len(prompt), len(image))  # before generation makes rows for each beam
            image = key_values  # no longer a tensor, so generation does not repeat it for each beam
        return self.model.generate(inputs, encoder_hidden_states=image, **kwargs)


def resolve_config(config: Any, model: Any) -> Any:
    """Refuse an unsuitable model; return a copy of the configuration with the options that were `None`."""
    decoders = find_decoders(model)
    if len(decoders) != 1:
        raise UserError(
            f"{type(model).__name__} contains {len(decoders)} supported decoders, expected one: give a plain "
            f"language model of type {' or '.join(DECODER_FAMILIES)}."
        )
    decoder = decoders[0].config
    decoder_family(decoder).check_config(decoder)
    name = getattr(model, "name_or_path", None)  # other modules around a language model have none
    if config.text_model_fingerprint is not None and name:
        commit = getattr(model.config, "_commit_hash", None)
        with suppress(OSError):  # the checkpoint has moved since it was loaded
            source = Backbone("text", name, commit, local_files_only=True)
            source.check_fingerprint(config.text_model_fingerprint)
    config = copy.copy(config)
    resolve_adapter(config, decoder)
    return config


# PEFT's enum of methods is closed (huggingface/peft, pull request 2282), so it is extended first.
if PEFT_TYPE not in PeftType.__members__:
    extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=ITuningTunerConfig, model_cls=ITuningTuner)

__all__ = ["ITuningTuner"]
