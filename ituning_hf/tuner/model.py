"""The tuner: it puts I-Tuning adapters into a language model."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..captioner.adapter_ituning import check_rows
from ..captioner.configuration_ituning import absolute_if_local, resolve_adapter
from ..captioner.decoders_ituning import DECODER_FAMILIES, decoder_family
from ..captioner.generation_ituning import check_guidance
from ..captioner.pretrained_ituning import fingerprint
from ..utils.errors import UserError
from .layer import (
    ADAPTERS,
    LAYER_CLASSES,
    ITuningLayer,
    PaddedLMHead,
    active_adapters,
    find_decoders,
    find_layers,
    project_image,
    replace_lm_head,
    take_image,
)
from .registration import PEFT_TYPE

# PEFT finds the keys of an adapter by its name anywhere in the key.
_PARTS_OF_KEYS = {
    *("base_model", "model", "base_layer", ADAPTERS),
    *("q_proj", "k_proj", "v_proj", "out_proj", "weight", "bias"),
    *(part for family in DECODER_FAMILIES.values() for part in family.layers_path.split(".")),
}
_LAYER_LISTS = sorted({family.layers_path.rpartition(".")[2] for family in DECODER_FAMILIES.values()})
_LAYER = re.compile(rf"(?:.*\.)?(?:{'|'.join(_LAYER_LISTS)})\.(\d+)")  # a decoder layer's name in a model
_TASKS = (TaskType.CAUSAL_LM, TaskType.FEATURE_EXTRACTION, None)


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
        *args: Further arguments of PEFT's `BaseTuner`.
        **kwargs: Further keyword arguments of PEFT's `BaseTuner`.

    Raises:
        ValueError: for an unsupported model, or options or a name that cannot be used. The model is then
            unchanged.

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
        *args: Any,
        **kwargs: Any,
    ) -> None:
        # Before PEFT changes the model's own `peft_config`, which may hold that of a LoRA.
        check_name(adapter_name, getattr(model, "peft_config", {}))
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        check_adapter(config, model)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, or replace the one of that name."""
        check_name(adapter_name, self.peft_config)
        self.peft_config[adapter_name] = check_adapter(self.peft_config[adapter_name], model)
        for layer in find_layers(model):
            if adapter_name in layer.ituning_adapter:
                del layer.ituning_adapter[adapter_name]
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        match = _LAYER.fullmatch(key)
        return match is not None and int(match[1]) in peft_config.adapter_layers

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
        replace_lm_head(model, nn.Linear, PaddedLMHead)

    def unload(self) -> nn.Module:
        """Return the language model without these adapters; adapters of other methods stay."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ITuningLayer):
                self.model.set_submodule(name, module.base_layer)
        for decoder in find_decoders(self.model):
            for key in [key for key, hook in decoder._forward_pre_hooks.items() if hook is take_image]:
                del decoder._forward_pre_hooks[key], decoder._forward_pre_hooks_with_kwargs[key]
        replace_lm_head(self.model, PaddedLMHead, nn.Linear)
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
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # PEFT would also take the weights of a LoRA of the same name, which has its own file.
        layers = {name for name, module in model.named_modules() if isinstance(module, ITuningLayer)}
        own = tuple(f"{name}.{ADAPTERS}.{adapter_name}." for name in layers)
        return {key: tensor for key, tensor in state_dict.items() if key.startswith(own)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the name second to last, where this adapter has the names of its modules.
        return key.replace(f".{ADAPTERS}.{adapter_name}.", f".{ADAPTERS}.")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError(
                "adapter_names (an adapter for each row) is not supported by the method 'ituning': all rows "
                "of an image share its keys and values. Call set_adapter for each adapter's rows."
            )
        yield

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
            **kwargs: For `GenerationMixin.generate`.

        Raises:
            ValueError: if there is no image, the rows cannot be divided evenly among the images, or there is
                neither a prompt nor a begin token.
            NotImplementedError: for an assistant model and for classifier-free guidance.
        """
        image: Any = encoder_hidden_states
        if image is not None and active_adapters(self.model):
            if kwargs.get("assistant_model") is not None:
                raise NotImplementedError(
                    "assistant_model is not supported: it would get this model's projected images. Use "
                    "prompt_lookup_num_tokens, or no assistant."
                )
            given = kwargs.get("generation_config") or self.model.generation_config
            check_guidance(kwargs.get("guidance_scale", given.guidance_scale))
            key_values = project_image(self.model, image)
            prompts = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            prompt = next((tensor for tensor in prompts if tensor is not None), None)
            if prompt is None:  # generation makes as many begin tokens as the mask has rows
                kwargs["attention_mask"] = torch.ones(len(image), 1, dtype=torch.long, device=image.device)
            else:
                check_rows(len(prompt), len(image))  # before generation makes rows for each beam
            image = key_values  # no longer a tensor, so generation does not repeat it for each beam
        return self.model.generate(inputs, encoder_hidden_states=image, **kwargs)


def check_name(name: str, configs: Mapping[str, PeftConfig]) -> None:
    """Refuse an adapter name that PEFT could confuse with another part of a key, or that is in use."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name) or name in _PARTS_OF_KEYS or name.isdigit():
        raise UserError(f"adapter_name is {name!r}, a part of weight names: use another, such as 'default'.")
    if name in configs and configs[name].peft_type != PEFT_TYPE:
        raise UserError(
            f"The model has an adapter {name!r} of another method ({type(configs[name]).__name__}): give the "
            "I-Tuning adapter another name, get_peft_model(model, config, adapter_name=...)."
        )


def check_adapter(config: Any, model: nn.Module) -> Any:
    """Refuse an unsuitable model; return a copy of the configuration with the options that were `None`."""
    if config.task_type not in _TASKS:
        raise UserError(
            f"task_type is {TaskType(config.task_type).value!r}, expected 'CAUSAL_LM', 'FEATURE_EXTRACTION' "
            "or None: the new head of that task would be neither trained nor saved."
        )
    if isinstance(model, PeftModel):
        raise UserError(
            "The model is a PeftModel, which would become part of the weights' names: use its base model, "
            "get_peft_model(model.get_base_model(), ...). A LoRA stays on it."
        )
    decoders = find_decoders(model)
    if len(decoders) != 1:
        raise UserError(
            f"{type(model).__name__} contains {len(decoders)} supported decoders, expected one: give a plain "
            f"language model of type {' or '.join(DECODER_FAMILIES)}."
        )
    decoder_family(decoders[0].config).check_config(decoders[0].config)
    _check_fingerprint(config, model)
    config = copy.copy(config)
    resolve_adapter(config, decoders[0].config)
    return config


def _check_fingerprint(config: Any, model: Any) -> None:
    """Refuse a language model other than the recorded one, if the checkpoint it comes from can be read."""
    name = getattr(model, "name_or_path", None)  # other modules around a language model have none
    if config.text_model_fingerprint is None or not name:
        return
    name = absolute_if_local(name)
    commit = getattr(model.config, "_commit_hash", None)
    try:
        found = fingerprint("text", name, revision=commit, local_files_only=True)
    except OSError:  # moved since it was loaded
        return
    if found != config.text_model_fingerprint:
        raise UserError(
            f"The language model {name!r} is not the one that this adapter was trained on: its weights have "
            f"fingerprint {found}, expected {config.text_model_fingerprint}. To use it nevertheless, set "
            "text_model_fingerprint of the configuration to None."
        )


__all__ = ["ITuningTuner"]
