"""Decoder families: all code that is specific to a language model architecture, with its adapted layer.

To support another architecture, add a subclass of [`DecoderFamily`], its adapted layer class and an entry in
`DECODER_FAMILIES`. No other file depends on the architecture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2Model
from transformers.utils import is_accelerate_available

from .adapter_ituning import ITuningAdapter, compute_device
from .configuration_ituning import CaptionerError

VisualKeyValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


class DecoderFamily:
    """What the captioner needs to know about a decoder architecture."""

    model_type: str  # as in Transformers' configurations
    model_class: type[PreTrainedModel]  # the language model with its output layer
    decoder_class: type[PreTrainedModel]  # the language model without its output layer
    layer_class: type[GradientCheckpointingLayer]
    adapted_layer_class: type[AdaptedLayer]  # the subclass of `layer_class` that has an adapter
    layers_path: str  # the path of the layer list inside the language model
    attention_name: str  # the attribute of a layer's self-attention, which has `config` and `layer_idx`
    ffn_norm_name: str  # the attribute of the norm before the feed-forward network
    architecture: tuple[str, ...]  # configuration fields that change the output of given weights
    weight_prefix: str  # prefix of the decoder's weight names in some checkpoints
    first_weight: str  # a weight that every checkpoint has, without the prefix
    not_weights: re.Pattern[str]  # buffers, which only some checkpoints contain

    def load(self, name: str, **kwargs: Any) -> Any:
        """Load a language model."""
        return self.model_class.from_pretrained(name, **kwargs)

    def run_layer(self, layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute a frozen layer's output for an input of shape (rows, T, d).

        Returns X, the layer-normed input of the feed-forward network, and the output; both (rows, T, d).
        """
        raise NotImplementedError

    def check_config(self, config: Any) -> None:
        """Raise `CaptionerError` if the language model cannot be used."""
        if config.bos_token_id is None or config.eos_token_id is None:
            tokens = f"bos_token_id={config.bos_token_id} and eos_token_id={config.eos_token_id}"
            raise CaptionerError(f"text_config has {tokens}: set both, captions need them.")

    def special_tokens(self, config: Any) -> dict[str, Any]:
        """Return the BOS, EOS and padding token ids; the padding token defaults to the EOS token."""
        end, pad = config.eos_token_id, config.pad_token_id
        if pad is None:
            pad = end[0] if isinstance(end, list) else end
        return {"bos_token_id": config.bos_token_id, "eos_token_id": end, "pad_token_id": pad}

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


class GPT2Family(DecoderFamily):
    """GPT-2 (`GPT2LMHeadModel`), of any size."""

    model_type = "gpt2"
    model_class = GPT2LMHeadModel
    decoder_class = GPT2Model
    layer_class = GPT2Block
    layers_path = "transformer.h"
    attention_name = "attn"
    ffn_norm_name = "ln_2"
    architecture = (
        "num_hidden_layers",
        "num_attention_heads",
        "activation_function",
        "layer_norm_epsilon",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
    )
    weight_prefix = "transformer."
    first_weight = "wte.weight"
    not_weights = re.compile(r"(^|\.)attn\.(masked_)?bias$")

    def check_config(self, config: Any) -> None:
        """Raise `CaptionerError` if the language model cannot be used."""
        super().check_config(config)
        if config.add_cross_attention:
            raise CaptionerError("text_config.add_cross_attention is True, expected False.")

    def run_layer(
        self,
        layer: Any,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a GPT-2 block; see [`DecoderFamily.run_layer`]. The `encoder_` arguments are unused."""
        attn_output, _ = layer.attn(
            layer.ln_1(hidden_states),
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            **kwargs,
        )
        residual = attn_output + hidden_states
        x = layer.ln_2(residual)
        return x, residual + self._feed_forward(layer, x)

    def _feed_forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        # GPT-2's GELU consists of eight operations that keep four (rows, T, 4 d) tensors for backpropagation;
        # torch's keeps one. They differ by rounding, so evaluation uses GPT-2's.
        mlp = layer.mlp
        is_hooked = mlp._forward_hooks or mlp._forward_pre_hooks or "forward" in vars(mlp)
        if is_hooked or not (layer.training and isinstance(mlp.act, NewGELUActivation)):
            return mlp(x)
        return mlp.dropout(mlp.c_proj(F.gelu(mlp.c_fc(x), approximate="tanh")))


class ITuningGPT2Block(AdaptedLayer, GPT2Block):
    """A GPT-2 block with an adapter."""

    family = GPT2Family()


GPT2Family.adapted_layer_class = ITuningGPT2Block

DECODER_FAMILIES = {family.model_type: family for family in (GPT2Family(),)}


def decoder_family(config: Any) -> DecoderFamily:
    """Return the family of a language model's configuration, or raise `CaptionerError`."""
    if (family := DECODER_FAMILIES.get(config.model_type)) is None:
        expected = sorted(DECODER_FAMILIES)
        raise CaptionerError(
            f"The language model's model_type is {config.model_type!r}, expected one of {expected}."
        )
    return family


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
    """Initialize a layer with the frozen modules of another layer instead of building new ones."""
    nn.Module.__init__(target)
    for name, module in source.named_children():
        if name != "adapter":
            target.add_module(name, module)
