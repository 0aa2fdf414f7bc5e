"""Puts I-Tuning adapters into a GPT-2, and the image on its way to them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..captioner.adapter_ituning import check_rows
from .checks import check_adapter, check_generation, check_name
from .config import ITuningTunerConfig
from .image import active_adapters, find_decoders, find_layers, project_image, take_image
from .layer import ADAPTERS, ITuningLayer
from .lm_head import PaddedLMHead, replace_lm_head
from .registration import PEFT_TYPE


class ITuningTuner(BaseTuner):
    """The PEFT method "ituning" on a frozen GPT-2; made by `get_peft_model`.

    The image is given to `forward` and `generate` as `encoder_hidden_states`, the vision encoder's token
    features of shape (num_images, N, d_v). Rows of text are image-major: with k rows for each image, row i
    belongs to image i // k, and all of them share its keys and values.

    A LoRA on the same GPT-2 goes first, under another name: `gpt2.add_adapter(lora_config, "style")` or
    `inject_adapter_in_model(lora_config, gpt2, "style")`, then `get_peft_model(gpt2, ...)`. Both compute,
    train and are disabled together; `unload()` leaves the LoRA, and then it is saved. PEFT finds no places
    for LoRA inside adapted layers, so the other order fails there, or leaves those layers out.

    Args:
        model: A GPT-2.
        peft_config: The configuration, or one for each adapter name.
        adapter_name: The adapter's name.
        low_cpu_mem_usage: Leave the adapter without memory until a checkpoint brings its tensors.
        state_dict: A checkpoint whose keys say which layers are adapted, in place of the configuration.

    Raises:
        ValueError: for a model that is no GPT-2, or options or a name that do not fit it. The model is then
            as it was.

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
    target_module_mapping: dict[str, list[str]] = {}  # the configuration names the layers itself

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        # Before PEFT writes the configuration into the model's own record, where a LoRA's may stand.
        check_name(adapter_name, getattr(model, "peft_config", {}))
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        check_adapter(config, model)
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter in, in place of one of that name.

        Raises:
            ValueError: for a model that is no GPT-2, or options or a name that do not fit it.
        """
        check_name(adapter_name, self.peft_config)
        self.peft_config[adapter_name] = check_adapter(self.peft_config[adapter_name], model)
        for layer in find_layers(model):
            if adapter_name in layer.ituning_adapter:
                del layer.ituning_adapter[adapter_name]
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        peft_config: ITuningTunerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, ITuningLayer):
            target.update_layer(adapter_name, peft_config)
            return
        self._replace_module(parent, target_name, ITuningLayer(target, adapter_name, peft_config), target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: Any) -> None:
        setattr(parent, child_name, new_module)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        for decoder in find_decoders(model):
            if take_image not in decoder._forward_pre_hooks.values():
                decoder.register_forward_pre_hook(take_image, with_kwargs=True)
        replace_lm_head(model, nn.Linear, PaddedLMHead)

    def unload(self) -> nn.Module:
        """Return the language model without these adapters; those of another method stay."""
        for decoder in find_decoders(self.model):
            for i, block in enumerate(decoder.h):
                if isinstance(block, ITuningLayer):
                    decoder.h[i] = block.base_layer
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
            "An I-Tuning adapter cannot be merged: it attends to the image, and no change of the frozen "
            "weights computes that. Keep it beside them, or take it off with unload()."
        )

    def unmerge_adapter(self) -> None:
        """Refuse, as merging is.

        Raises:
            NotImplementedError: always, with the reason.
        """
        self._check_merge_allowed()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter active, or several, whose outputs are added up.

        Args:
            adapter_name: Its name, or their names.
            inference_mode: Do not make them trainable.

        Raises:
            ValueError: if one of them is no I-Tuning adapter of this model.
        """
        self._check_own([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if no active one is left, the first of the others by name becomes active.

        Raises:
            ValueError: if there is no I-Tuning adapter of that name.
        """
        self._check_own([adapter_name])
        before = self.active_adapters
        super().delete_adapter(adapter_name)
        # Layers decide for themselves there, and not every adapter is in every layer.
        self.active_adapter = [name for name in before if name != adapter_name]
        if not self.active_adapter:
            self.set_adapter(sorted(self._own_adapters())[:1])

    def _own_adapters(self) -> list[str]:
        return [name for name, config in self.peft_config.items() if config.peft_type == PEFT_TYPE]

    def _check_own(self, names: list[str]) -> None:
        if foreign := [name for name in names if name not in self._own_adapters()]:
            raise ValueError(
                f"There is no I-Tuning adapter {foreign} on this model: it has {self._own_adapters()}. "
                "Adapters of another method are switched by that method."
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
        # PEFT takes every method's: a LoRA of the same name on the same model has a file of its own.
        layers = {name for name, module in model.named_modules() if isinstance(module, ITuningLayer)}
        own = tuple(f"{name}.{ADAPTERS}.{adapter_name}." for name in layers)
        return {key: tensor for key, tensor in state_dict.items() if key.startswith(own)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects the name second to last, where a whole adapter has its modules' names.
        return key.replace(f".{ADAPTERS}.{adapter_name}.", f".{ADAPTERS}.")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError(
                "adapter_names (another adapter for each row) is not supported by the method 'ituning': "
                "all rows of an image share its keys and values. Call set_adapter, and run each adapter's "
                "rows by themselves."
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
        """Generate text for images, whose keys and values are projected once for all steps and beams.

        Args:
            inputs: Prompts, left-padded, of shape (num_images * k, T), image-major; also as `input_ids`.
                Without one, each image gets a text that starts at the begin token.
            encoder_hidden_states: The images, of shape (num_images, N, d_v).
            **kwargs: For `GenerationMixin.generate`.

        Returns:
            What `GenerationMixin.generate` returns.

        Raises:
            ValueError: if there is no image, or the rows cannot be divided among the images, or there is
                neither a prompt nor a begin token.
            NotImplementedError: for an assistant model and for classifier-free guidance.
        """
        image: Any = encoder_hidden_states
        if image is not None and active_adapters(self.model):
            check_generation(kwargs, self.model.generation_config)
            # No tensor any more, so that generation does not repeat it for each beam.
            key_values = project_image(self.model, image)
            given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            prompt = next((tensor for tensor in given if tensor is not None), None)
            if prompt is None:
                begin = _begin_token(kwargs, self.model.generation_config)
                prompt = torch.full((image.shape[0], 1), begin, device=image.device)
                kwargs |= {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
            check_rows(prompt.shape[0], image.shape[0])  # before there are rows for each beam
            image = key_values
        return self.model.generate(inputs, encoder_hidden_states=image, **kwargs)


def _begin_token(options: dict[str, Any], own: Any) -> int:
    """Return the begin token of `generate`'s options, their generation configuration or the model's own."""
    configured = getattr(options.get("generation_config"), "bos_token_id", None)
    named = (options.get("bos_token_id"), configured, own.bos_token_id)
    begin = next((token for token in named if token is not None), None)
    if begin is None:
        raise ValueError("The model's generation_config has no bos_token_id: give input_ids.")
    return begin


__all__ = ["ITuningTuner"]
