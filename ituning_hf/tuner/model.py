"""The tuner, which adds I-Tuning adapters to a language model. Importing it registers the PEFT method."""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from aenum import extend_enum
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from ..captioner.adapter_ituning import check_rows
from ..captioner.backbones_ituning import Backbone
from ..captioner.configuration_ituning import CaptionerError, resolve_adapter
from ..captioner.decoders_ituning import DECODER_FAMILIES, decoder_family
from ..captioner.generation_ituning import check_guidance
from ..utils.errors import UserError
from .config import PEFT_TYPE, ITuningTunerConfig
from .layer import (
    ADAPTERS,
    LAYER_CLASSES,
    ITuningLayer,
    PaddedLMHead,
    accept_image,
    change_lm_head,
    find_decoders,
    given_text,
    project_image,
    take_image,
)
from .saving import is_over_captioner, push, replace_method, write_card

_LAYER_LISTS = {family.layers_path.rpartition(".")[2] for family in DECODER_FAMILIES.values()}
_KNOWN_LAYERS = {*LAYER_CLASSES, *LAYER_CLASSES.values()}
# Not allowed as adapter names: PEFT does not save keys that contain the name of another adapter.
_PARTS_OF_KEYS = {ADAPTERS, "q_proj", "k_proj", "v_proj", "out_proj", "weight", "bias"}
_PARTS_OF_KEYS |= {part for family in DECODER_FAMILIES.values() for part in family.layers_path.split(".")}


class ITuningTuner(BaseTuner):
    """The PEFT method "ituning" on a frozen language model; `get_peft_model` creates it.

    `forward` and `generate` take images as `visual_features`: the token features of the vision encoder,
    of shape (num_images, N, d_v). Rows of text are image-major: with k rows per image, row i belongs to image
    i // k, and all rows of an image share its keys and values.

    To combine it with LoRA on the same language model, add LoRA first, under another adapter name:
    `model.add_adapter(lora_config, "style")` or `inject_adapter_in_model(lora_config, model, "style")`, then
    `get_peft_model(model, ...)`. Both are active, trained and disabled together; `unload()` keeps LoRA, which
    can then be saved. In the other order, PEFT does not find LoRA's target modules in adapted layers.

    Args:
        model: The language model.
        peft_config: A configuration, or a dictionary of configurations by adapter name.
        adapter_name: The name of the adapter.
        **kwargs: Passed to PEFT's `BaseTuner`.

    Raises:
        ValueError: if the model is not supported or an option is invalid; the model is then unchanged.

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
    >>> model.generate(visual_features=images, num_beams=3, min_new_tokens=4, max_new_tokens=4).shape
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
        # PEFT adds the configuration to those that the model already has.
        other = getattr(model, "peft_config", {}).get(adapter_name)
        if other is not None and other.peft_type != PEFT_TYPE:
            raise UserError(
                f"The model has an adapter {adapter_name!r} of another method ({type(other).__name__}): "
                "choose another name with get_peft_model(model, config, adapter_name=...)."
            )
        if isinstance(model, PeftModel):
            raise UserError(
                "The model is a PeftModel, whose prefix would become part of weight names: pass its base "
                "model, get_peft_model(model.get_base_model(), ...), which keeps LoRA adapters."
            )
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, or replace the one of that name."""
        if adapter_name in _PARTS_OF_KEYS or adapter_name.isdigit():
            raise UserError(
                f"adapter_name is {adapter_name!r}, which occurs in weight names: choose another name."
            )
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
        elif type(target) in LAYER_CLASSES:  # not a layer of a vision encoder in the same model
            setattr(parent, target_name, LAYER_CLASSES[type(target)](target, adapter_name, peft_config))

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        for decoder in find_decoders(model):
            if take_image not in decoder._forward_pre_hooks.values():
                decoder.register_forward_pre_hook(take_image, with_kwargs=True)
        for language_model in [module for module in model.modules() if isinstance(module, GenerationMixin)]:
            language_model._validate_model_kwargs = partial(accept_image, language_model)
        change_lm_head(model, nn.Linear, PaddedLMHead)

    def unload(self) -> nn.Module:
        """Return the language model without these adapters, keeping adapters of other methods."""
        for name, module in list(self.model.named_modules()):
            vars(module).pop("_validate_model_kwargs", None)
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
            "An I-Tuning adapter cannot be merged: cross-attention to an image cannot be folded into the "
            "frozen weights. Keep the adapter, or remove it with unload()."
        )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one or several adapters, whose outputs are summed, without changing other methods'."""
        self._check_own([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. If no active one remains, activate the first remaining one by name."""
        self._check_own([adapter_name])
        before = self.active_adapters
        super().delete_adapter(adapter_name)
        # PEFT would choose for each layer separately, and not every layer has every adapter.
        self.active_adapter = [name for name in before if name != adapter_name]
        if not self.active_adapter:
            self.set_adapter(sorted(self._own_adapters())[:1])

    def _own_adapters(self) -> list[str]:
        return [name for name, config in self.peft_config.items() if config.peft_type == PEFT_TYPE]

    def _check_own(self, names: list[str]) -> None:
        if foreign := [name for name in names if name not in self._own_adapters()]:
            raise UserError(
                f"There is no I-Tuning adapter {foreign} on this model: it has {self._own_adapters()}. "
                "Adapters of other methods cannot be changed here."
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
        # PEFT would also include LoRA weights, which are saved separately.
        return {key: tensor for key, tensor in state_dict.items() if f".{ADAPTERS}.{adapter_name}." in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the adapter's name second to last in a key, where this method has module names.
        return key.replace(f".{ADAPTERS}.{adapter_name}.", f".{ADAPTERS}.")

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        visual_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate text for images, projecting their keys and values once for all steps and beams.

        Args:
            inputs: Left-padded prompts of shape (num_images * k, T), image-major; also accepted as
                `input_ids`. Without prompts, one text per image is generated, starting with the BOS token.
            visual_features: The image features, of shape (num_images, N, d_v).
            labels: Ignored. With labels, as in a training batch or from `Seq2SeqTrainer`, the text holds the
                targets and is ignored too: one text per image is generated.
            **kwargs: Passed to `GenerationMixin.generate`. Classifier-free guidance is not supported.

        Raises:
            ValueError: if there is no image, the rows cannot be divided evenly among the images, or there is
                neither a prompt nor a BOS token.
        """
        if labels is not None:
            inputs = None
            for name in ("input_ids", "inputs_embeds", "attention_mask", "label_smoothing"):
                kwargs.pop(name, None)
        config = kwargs.get("generation_config") or self.model.generation_config
        check_guidance(kwargs.get("guidance_scale", config.guidance_scale))
        key_values = project_image(self.model, visual_features)
        if visual_features is not None:
            prompt = given_text((inputs,), kwargs)
            if prompt is None:  # the number of BOS tokens is that of the mask's rows
                mask = torch.ones(len(visual_features), 1, dtype=torch.long, device=visual_features.device)
                kwargs["attention_mask"] = mask
                if config.bos_token_id is None:
                    tokens = decoder_family(self.model.config).special_tokens(self.model.config)
                    kwargs.setdefault("bos_token_id", tokens["bos_token_id"])
            else:
                check_rows(len(prompt), len(visual_features))  # before rows are repeated for each beam
        # Not a tensor, so generation does not repeat it for each beam.
        return self.model.generate(inputs, visual_key_values=key_values, **kwargs)


def resolve_config(config: Any, model: Any) -> Any:
    """Check the model; return a copy of the configuration in which `None` is replaced."""
    decoders = find_decoders(model)
    if not decoders and isinstance(model, PreTrainedModel):
        decoder_family(model.config)  # the error lists the supported language models
    if len(decoders) != 1:
        raise UserError(
            f"{type(model).__name__} contains {len(decoders)} supported decoders, expected one: pass a plain "
            "language model."
        )
    decoder = decoders[0].config
    decoder_family(decoder).check_config(decoder)
    for layer in decoders[0].modules():
        if isinstance(layer, tuple(LAYER_CLASSES)) and type(layer) not in _KNOWN_LAYERS:
            raise UserError(
                f"The language model has layers of class {type(layer).__name__}, whose output would change: "
                "pass a plain language model. For a captioner, use ituning_hf.tuner.to_peft(captioner)."
            )
    config = copy.copy(config)
    resolve_adapter(config, decoder)
    if name := getattr(model, "name_or_path", None):  # a module that wraps a language model has none
        commit, expected = getattr(model.config, "_commit_hash", None), config.text_model_fingerprint
        # The checkpoint has moved since it was loaded, or the model was changed, or is part of a larger one.
        with suppress(OSError, *([] if expected else [CaptionerError, TypeError])):
            source = Backbone("text", name, commit, local_files_only=True)
            source.check_fingerprint(expected)
            if expected is None:
                weights = model.state_dict().items()
                source.check_unchanged(model, {key: x for key, x in weights if f".{ADAPTERS}." not in key})
                config.text_model_fingerprint = source.fingerprint()
    return config


def _is_tuned(model: PeftModel) -> bool:
    return isinstance(model.base_model, ITuningTuner)


def _is_ours(model: PeftModel) -> bool:
    return _is_tuned(model) or is_over_captioner(model)


def _generate(model: PeftModel, *args: Any, **kwargs: Any) -> Any:
    """Call the tuner's `generate`, which PEFT does only with task type "CAUSAL_LM"."""
    tuner: Any = model.base_model
    return tuner.generate(*args, **kwargs)


# PEFT's enum of methods cannot be extended by its API (huggingface/peft, pull request 2282).
if PEFT_TYPE not in PeftType.__members__:
    extend_enum(PeftType, PEFT_TYPE, PEFT_TYPE)
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=ITuningTunerConfig, model_cls=ITuningTuner)
    replace_method("create_or_update_model_card", write_card, _is_ours)
    replace_method("push_to_hub", push, _is_ours)
    replace_method("generate", _generate, _is_tuned)

__all__ = ["ITuningTuner"]
