"""Decoder families: all code that is specific to a language model architecture.

To support another architecture, add a subclass of [`DecoderFamily`] with the decorator `@supported`. No other
file depends on the architecture; see docs/families.md.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch.nn import functional as F
from transformers import (
    Gemma3ForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.activations import NewGELUActivation
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .configuration_ituning import CaptionerError
from .decoder_layers_ituning import AdaptedLayer, DecoderFamily

DECODER_FAMILIES: dict[str, DecoderFamily] = {}
_FamilyClass = TypeVar("_FamilyClass", bound=type[DecoderFamily])


def supported(family_class: _FamilyClass) -> _FamilyClass:
    """Class decorator: add a family, and build the class of its layers with an adapter."""
    family = family_class()
    name, bases = f"Adapted{family.layer_class.__name__}", (AdaptedLayer, family.layer_class)
    family.adapted_layer_class = type(name, bases, {"family": family, "__module__": __name__})
    globals()[name] = family.adapted_layer_class  # where pickle looks for it
    DECODER_FAMILIES[family.model_type] = family
    return family_class


@supported
class GPT2Family(DecoderFamily):
    """GPT-2 (`GPT2LMHeadModel`), of any size."""

    model_type = "gpt2"
    model_class = GPT2LMHeadModel
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


@supported
class OPTFamily(DecoderFamily):
    """OPT (`OPTForCausalLM`) with layer norms before attention and feed-forward network: all but OPT-350m."""

    model_type = "opt"
    model_class = OPTForCausalLM
    layer_class = OPTDecoderLayer
    layers_path = "model.decoder.layers"
    attention_name = "self_attn"
    ffn_norm_name = "final_layer_norm"
    separates_packed_rows = False  # the decoder does not pass position ids to the attention mask
    architecture = ("num_hidden_layers", "num_attention_heads", "activation_function")
    weight_prefix = "model."
    first_weight = "decoder.embed_tokens.weight"

    def check_config(self, config: Any) -> None:
        """Raise `CaptionerError` if the language model cannot be used."""
        super().check_config(config)
        if not config.do_layer_norm_before:
            raise CaptionerError(
                "text_config.do_layer_norm_before is False, expected True: the layer norms follow the "
                "residual connections (as in OPT-350m), so the feed-forward network has no normed input."
            )
        if not config.layer_norm_elementwise_affine:
            raise CaptionerError("text_config.layer_norm_elementwise_affine is False, expected True.")

    def set_dropout(self, layer: Any, is_enabled: bool) -> None:
        """Turn the dropout after attention and after the feed-forward network off or on."""
        layer.dropout = layer.self_attn.config.dropout if is_enabled else 0.0

    def run_layer(
        self, layer: Any, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute an OPT layer; see [`DecoderFamily.run_layer`]."""
        attn_output, _ = layer.self_attn(hidden_states=layer.self_attn_layer_norm(hidden_states), **kwargs)
        residual = hidden_states + F.dropout(attn_output, layer.dropout, layer.training)
        x = layer.final_layer_norm(residual)
        output = layer.fc2(layer.activation_fn(layer.fc1(x)))
        return x, residual + F.dropout(output, layer.dropout, layer.training)


@supported
class LlamaFamily(DecoderFamily):
    """Llama and models of its class (`LlamaForCausalLM`), such as SmolLM2 and TinyLlama."""

    model_type = "llama"
    model_class = LlamaForCausalLM
    layer_class = LlamaDecoderLayer
    layers_path = "model.layers"
    attention_name = "self_attn"
    ffn_norm_name = "post_attention_layernorm"
    architecture: tuple[str, ...] = (
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("hidden_act", "rms_norm_eps", "rope_parameters"),
    )
    weight_prefix = "model."
    first_weight = "embed_tokens.weight"
    not_weights = re.compile(r"rotary_emb\.inv_freq$")

    def run_layer(
        self, layer: Any, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a Llama layer; see [`DecoderFamily.run_layer`]."""
        attn_output, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        residual = hidden_states + attn_output
        x = layer.post_attention_layernorm(residual)
        return x, residual + layer.mlp(x)


@supported
class Qwen2Family(LlamaFamily):
    """Qwen2 and Qwen2.5 (`Qwen2ForCausalLM`); their layers are computed as Llama's."""

    model_type = "qwen2"
    model_class = Qwen2ForCausalLM
    layer_class = Qwen2DecoderLayer
    architecture: tuple[str, ...] = (
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act"),
        *("rms_norm_eps", "rope_parameters", "layer_types", "sliding_window"),
    )


@supported
class Qwen3Family(Qwen2Family):
    """Qwen3 (`Qwen3ForCausalLM`)."""

    model_type = "qwen3"
    model_class = Qwen3ForCausalLM
    layer_class = Qwen3DecoderLayer
    architecture = (*Qwen2Family.architecture, "head_dim")


@supported
class Gemma3Family(LlamaFamily):
    """The text models of Gemma 3 (`Gemma3ForCausalLM`): 270M and 1B.

    Gemma normalizes the output of the feed-forward network, too. The adapter's dX is added after that norm,
    before the residual connection, so the norm does not rescale it.
    """

    model_type = "gemma3_text"
    model_class = Gemma3ForCausalLM
    layer_class = Gemma3DecoderLayer
    ffn_norm_name = "pre_feedforward_layernorm"
    architecture = (
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("hidden_activation", "rms_norm_eps", "rope_parameters", "layer_types", "sliding_window"),
        *("query_pre_attn_scalar", "attn_logit_softcapping"),
    )

    def check_config(self, config: Any) -> None:
        """Raise `CaptionerError` if the language model cannot be used."""
        super().check_config(config)
        if config.final_logit_softcapping is not None:
            raise CaptionerError(
                f"text_config.final_logit_softcapping is {config.final_logit_softcapping}, expected None: "
                "the loss is computed from the output layer's logits, which this model caps."
            )
        if config.use_bidirectional_attention:
            raise CaptionerError("text_config.use_bidirectional_attention is True, expected False.")

    def run_layer(
        self, layer: Any, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a Gemma 3 layer; see [`DecoderFamily.run_layer`]."""
        attn_output, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        residual = hidden_states + layer.post_attention_layernorm(attn_output)
        x = layer.pre_feedforward_layernorm(residual)
        return x, residual + layer.post_feedforward_layernorm(layer.mlp(x))


def decoder_family(config: Any) -> DecoderFamily:
    """Return the family of a language model's configuration, or raise `CaptionerError`."""
    if (family := DECODER_FAMILIES.get(config.model_type)) is None:
        raise CaptionerError(
            f"The language model's model_type is {config.model_type!r}, expected one of "
            f"{sorted(DECODER_FAMILIES)}. See docs/families.md to add another."
        )
    return family
