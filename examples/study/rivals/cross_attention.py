"""Plain cross-attention between self-attention and feed-forward network, as in SmallCap.

Ramos, Martins, Elliott, Kementchedjhieva: *SmallCap: Lightweight Image Captioning Prompted with Retrieval
Augmentation*, CVPR 2023, <https://arxiv.org/abs/2209.15323>, section 3.1; code at
<https://github.com/RitaRamo/smallcap>, `src/gpt2.py` and `train.py`. Transformers'
`VisionEncoderDecoderModel` has the same layer with r = d (`add_cross_attention`). Retrieval is left out.

    H := H + SelfAttention(LayerNorm(H))
    H := H + softmax(Q K^T / sqrt(r / heads)) V W_o + b_o,   Q = LayerNorm(H) W_q + b_q
    H := H + FFN(LayerNorm(H))                               K = I W_k + b_k,  V = I W_v + b_v

As there: N(0, 0.02) for W_q, W_k and W_v, N(0, 0.02 / sqrt(2 layers)) for W_o, zero for biases, so the
language model's output changes at the start; and the new norm before the queries, which has the weight 1 and
the bias 0, is not trained (VisionEncoderDecoder trains it). No dropout; there, it is the language model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ituning_hf.captioner.adapter_ituning import INITIAL_STD, ITuningAdapter

from .layers import ImageLayer, LayerCaptioner


class CrossAttention(LayerCaptioner):
    """Cross-attention in all layers: r (2 d + 2 d_v + 3) + d trained parameters in each, as I-Tuning.

    Args:
        text_model: A `GPT2LMHeadModel` of width d; see [`FrozenCaptioner`].
        vision_hidden_size: The encoder's width d_v.
        num_parameters: Choose the multiple r of the number of heads that comes closest to this number. By
            default, r is d.
    """

    def __init__(self, text_model: Any, vision_hidden_size: int, num_parameters: int | None = None) -> None:
        config = text_model.config
        depth, heads, width = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
        units = width // heads
        if num_parameters is not None:
            units = round((num_parameters / depth - width) / (2 * (width + vision_hidden_size) + 3) / heads)

        def wrap(layer: nn.Module) -> ImageLayer:
            attention = ITuningAdapter(width, vision_hidden_size, units * heads, heads)
            nn.init.normal_(attention.out_proj.weight, std=INITIAL_STD / (2 * depth) ** 0.5)
            return CrossAttentionLayer(layer, attention)

        super().__init__(text_model, wrap)


class CrossAttentionLayer(ImageLayer):
    """A frozen GPT-2 block with cross-attention."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: None,
        encoder_attention_mask: None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute the layer's output, (rows, T, d), from its input. The `encoder_` arguments are unused."""
        layer: Any = self.layer
        normed = layer.ln_1(hidden_states)
        update, _ = layer.attn(normed, past_key_values, attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + update
        normed = nn.functional.layer_norm(hidden_states, hidden_states.shape[-1:], eps=layer.ln_1.eps)
        hidden_states = hidden_states + self.attend(normed)
        return hidden_states + layer.mlp(layer.ln_2(hidden_states))
