"""What a decoder family declares, and the decoder layer with an adapter.

The families themselves are in `decoders_ituning.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_accelerate_available

from .adapter_ituning import ITuningAdapter, compute_device
from .configuration_ituning import CaptionerError

VisualKeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class DecoderFamily:
    """What the captioner needs to know about a decoder architecture."""

    model_type: str  # as in Transformers' configurations
    model_class: type[PreTrainedModel]  # the language model with its output layer
    layer_class: type[GradientCheckpointingLayer]
    adapted_layer_class: type[AdaptedLayer]  # the subclass of `layer_class` that has an adapter
    layers_path: str  # the path of the layer list inside the language model
    attention_name: str  # the attribute of a layer's self-attention, which has `config` and `layer_idx`
    ffn_norm_name: str  # the attribute of the norm before the feed-forward network
    # Whether the decoder infers from position ids that restart at 0 where packed rows begin.
    separates_packed_rows = True
    architecture: tuple[str, ...]  # configuration fields that change the output of given weights
    weight_prefix: str  # prefix of the decoder's weight names in some checkpoints
    first_weight: str  # a weight that every checkpoint has, without the prefix
    not_weights = re.compile(r"(?!)")  # buffers, which only some checkpoints contain; by default none

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load a language model."""
        return self.model_class.from_pretrained(name, **kwargs)

    def as_stored(self, model: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights in memory under their names in a checkpoint, which are the same."""
        return state_dict

    def run_layer(
        self, layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a frozen layer's output for an input of shape (rows, T, d).

        Returns X, the layer-normed input of the feed-forward network, and the output; both (rows, T, d). The
        adapter's dX is added to the output. Other arguments are those of the layer's `forward`.
        """
        raise NotImplementedError

    def check_config(self, config: Any) -> None:
        """Raise `CaptionerError` if the language model cannot be used."""
        if config.eos_token_id in (None, []):
            raise CaptionerError(
                f"The language model's configuration has eos_token_id={config.eos_token_id}: set it, because "
                "captions end with this token."
            )
        for name, token in self.special_tokens(config).items():
            for i in token if isinstance(token, list) else [token]:
                if not 0 <= i < config.vocab_size:
                    raise CaptionerError(
                        f"The language model's configuration has {name}={i}, expected a token of the "
                        f"{config.vocab_size} in its vocabulary: correct its config.json."
                    )

    def special_tokens(self, config: Any) -> dict[str, Any]:
        """Return the BOS, EOS and padding token ids; a missing BOS or padding token is the (first) EOS."""
        begin, end, pad = config.bos_token_id, config.eos_token_id, config.pad_token_id
        first = end[0] if isinstance(end, list) else end
        return {
            "bos_token_id": first if begin is None else begin,
            "eos_token_id": end,
            "pad_token_id": first if pad in (None, -1) else pad,  # -1 in early conversions
        }

    def set_dropout(self, layer: Any, is_enabled: bool) -> None:
        """Turn dropout that a layer applies by its own `training` flag on or off.

        The captioner sets this flag in training, when frozen layers must not drop anything.
        """

    def layers(self, text_model: nn.Module) -> nn.ModuleList:
        """Return the layers of a language model, bottom first."""
        return text_model.get_submodule(self.layers_path)  # type: ignore[return-value]

    def layer_index(self, layer: nn.Module) -> int:
        """Return a layer's index, counted from 0 at the bottom."""
        return getattr(layer, self.attention_name).layer_idx

    def uses_eager_attention(self, layer: nn.Module) -> bool:
        """Return whether attention is computed without a fused kernel."""
        return getattr(layer, self.attention_name).config._attn_implementation == "eager"

    def ffn_norm(self, layer: nn.Module) -> Any:
        """Return the norm before the feed-forward network. No quantization changes it."""
        return getattr(layer, self.ffn_norm_name)

    def compute_device(self, layer: nn.Module) -> Any:
        """Return the device on which a layer computes, which differs from that of offloaded weights."""
        return compute_device(self.ffn_norm(layer))

    def without_adapters(self, text_model: Any) -> Any:
        """Return a copy of a language model without adapters that shares all its parameters."""
        copied = copy_sharing_weights(getattr(text_model, "_orig_mod", text_model))  # of torch.compile
        layers: Any = self.layers(copied)
        for i, layer in enumerate(layers):
            if hasattr(layer, "adapter"):  # of any class, as remote code has its own
                layers[i] = plain = object.__new__(self.layer_class)
                _take_modules(layer, plain)
                copy_block_state(layer, plain)
            self.set_dropout(layers[i], True)
        return copied


class AdaptedLayer(nn.Module):
    """A frozen decoder layer with an adapter in parallel to its feed-forward network.

    A family's adapted layer class also inherits from the family's own layer class: Transformers recognizes
    layers by class to record hidden states, and wraps `forward` for gradient checkpointing when a subclass is
    defined. The layer takes over the modules of a loaded layer, so weight names do not change.

    The images' keys and values are arguments of each call, not module state, so threads can share a model.
    """

    family: DecoderFamily
    adapter: ITuningAdapter

    def __init__(self, layer: nn.Module, adapter: ITuningAdapter) -> None:
        _take_modules(layer, self)
        device = self.family.compute_device(layer)
        # An adapter on the meta device is filled from a checkpoint later.
        adapter = adapter.to_empty(device=device) if adapter.q_proj.weight.is_meta else adapter.to(device)
        self.adapter = adapter.train(layer.training)
        copy_block_state(layer, self)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        visual_key_values: VisualKeyValues | None = None,
        store_attention: Callable[[int, torch.Tensor], None] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the layer's output for an input of shape (rows, T, d), with image-major rows.

        `visual_key_values` has the keys and values of each adapted layer, both (num_images, h, N, r / h);
        without it, only the frozen layer is computed. `store_attention` is called with the layer's index and
        its attention weights over the image, (rows, h, T, N). (Hooks of Accelerate would copy a dictionary.)
        Other arguments and the output are those of the frozen layer.
        """
        x, output = self.family.run_layer(self, hidden_states, *args, **kwargs)
        if visual_key_values is None:
            return output
        index = self.family.layer_index(self)
        key, value = visual_key_values[index]
        if store_attention is not None:
            store_attention(index, self.adapter.attention_weights(x, key))
        return output + self.adapter(x, key, value, eager=self.family.uses_eager_attention(self))


def copy_sharing_weights(model: nn.Module) -> Any:
    """Copy a model, sharing its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def copy_block_state(source: Any, target: Any) -> None:
    """Copy training mode, gradient checkpointing and hooks from a layer to the layer that replaces it.

    The hooks record hidden states or, with a device map, move inputs between devices.
    """
    target.training = source.training
    if source.gradient_checkpointing:
        target.gradient_checkpointing = True
        target._gradient_checkpointing_func = source._gradient_checkpointing_func
    target._forward_hooks.update(source._forward_hooks)
    hook = getattr(source, "_hf_hook", None)
    if hook is not None and is_accelerate_available():
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(target, hook)


def _take_modules(source: Any, target: Any) -> None:
    """Initialize a layer with the frozen modules and sizes of another layer, without building new ones."""
    nn.Module.__init__(target)
    for name, module in source.named_children():
        if name != "adapter":
            target.add_module(name, module)
    # Sizes and flags that some layers read in `forward`. Hooks, which are also attributes, are not copied.
    for name, value in vars(source).items():
        if isinstance(value, bool | int | float | str | PreTrainedConfig) and name not in vars(target):
            setattr(target, name, value)
