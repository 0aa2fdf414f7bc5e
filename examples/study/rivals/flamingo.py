"""Gated cross-attention before each frozen layer, as in Flamingo.

Alayrac et al.: *Flamingo: a Visual Language Model for Few-Shot Learning*, NeurIPS 2022,
<https://arxiv.org/abs/2204.14198>, section 2.2 and appendix A.1.2; open code at
<https://github.com/mlfoundations/open_flamingo>, `open_flamingo/src/helpers.py`.

    H := H + tanh(a) * softmax(Q K^T / sqrt(r / heads)) V W_o     Q = LayerNorm(H) W_q, K = I W_k, V = I W_v
    H := H + tanh(b) * GELU(LayerNorm(H) W_1) W_2                 W_1 is d x f, W_2 is f x d
    H := frozen layer(H)

The gates a and b start at zero, so the model computes the frozen language model. As in OpenFlamingo: GELU
(squared ReLU in the paper), no biases except in the norms, PyTorch's initialization. The paper has r = d and
f = 4 d. The resampler, which shortens long or several visual inputs, is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ituning_hf.captioner.adapter_ituning import ITuningAdapter

from .layers import ImageLayer, LayerCaptioner


class Flamingo(LayerCaptioner):
    """Gated blocks before all layers: r (2 d + 2 d_v) + 2 d f + 4 d + 2 trained parameters in each.

    Args:
        text_model: The language model, of width d; see [`FrozenCaptioner`].
        vision_hidden_size: The encoder's width d_v.
        num_parameters: Give the multiple r of the number of heads half of this number, as nearly as possible,
            then choose the f that comes closest to all of it. By default, r is d and f is 4 d.
    """

    def __init__(self, text_model: Any, vision_hidden_size: int, num_parameters: int | None = None) -> None:
        config = text_model.config
        heads, width = config.num_attention_heads, config.hidden_size
        inner, ffn_size = width, 4 * width
        if num_parameters is not None:
            available = num_parameters / config.num_hidden_layers - 4 * width - 2  # in a layer
            per_channel = 2 * (width + vision_hidden_size)
            inner = heads * round(available / 2 / per_channel / heads)
            ffn_size = round((available - inner * per_channel) / (2 * width))

        def wrap(layer: nn.Module) -> ImageLayer:
            attention = ITuningAdapter(width, vision_hidden_size, inner, heads)
            for projection in attention.children():
                if isinstance(projection, nn.Linear):
                    projection.register_parameter("bias", None)
                    projection.reset_parameters()  # to PyTorch's initialization
            return GatedLayer(layer, attention, width, ffn_size)

        super().__init__(text_model, wrap)


class GatedLayer(ImageLayer):
    """A frozen layer after gated cross-attention and a gated feed-forward network."""

    def __init__(self, layer: nn.Module, attention: ITuningAdapter, hidden_size: int, ffn_size: int) -> None:
        super().__init__(layer, attention)
        self.norm = nn.LayerNorm(hidden_size)
        self.attention_gate, self.ffn_gate = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        up, down = (
            nn.Linear(*shape, bias=False) for shape in ((hidden_size, ffn_size), (ffn_size, hidden_size))
        )
        self.ffn = nn.Sequential(nn.LayerNorm(hidden_size), up, nn.GELU(), down)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the layer's output, (rows, T, d), from its input and the layer's other arguments."""
        hidden_states = hidden_states + self.attention_gate.tanh() * self.attend(self.norm(hidden_states))
        hidden_states = hidden_states + self.ffn_gate.tanh() * self.ffn(hidden_states)
        return self.layer(hidden_states, *args, **kwargs)
