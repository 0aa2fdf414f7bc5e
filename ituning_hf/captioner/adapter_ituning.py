r"""The I-Tuning adapter: a cross-modal filter in parallel to a frozen feed-forward network.

Luo, Hu, Xi, Zhang, Ma: *I-Tuning: Tuning Frozen Language Models with Image for Lightweight Image
Captioning*, ICASSP 2023, <https://arxiv.org/abs/2202.06574>. The whole method is implemented in this file.

For one decoder layer:

    Q  = X W_q + b_q                           T x r     queries from the text
    K  = I W_k + b_k                           N x r     keys from the image
    V  = I W_v + b_v                           N x r     values from the image
    A  = softmax(Q K^T / sqrt(r / h))          T x N     attention weights, for each head
    dX = lambda * dropout((A V) W_o + b_o)     T x d
    output of the layer's feed-forward network := FFN(X) + dX

    X        T x d    the layer-normed input of the feed-forward network, T tokens
    I        N x d_v  the visual memory: the N tokens of the vision encoder, class token first, by default
                      each normalized by `normalize_tokens`
    d, d_v            `hidden_size`, `vision_hidden_size`: the widths of decoder and encoder
    r                 `adapter_hidden_size`: the width of the bottleneck
    h                 `num_heads`: heads of r / h channels
    lambda            `scale`: a constant
    W_q, W_k, W_v     initialized from N(0, 0.02); their biases are initialized to zero
    W_o, b_o          initialized to zero: dX is zero, and the model computes the frozen language model

The module is a bottleneck adapter whose non-linearity is cross-attention to the image.

Stated in the paper's abstract and introduction: both backbones are frozen, and a cross-attention filter
selects visual information to adjust the decoder's output hidden states. Recalled from the paper, and
consistent with its parameter counts: the position parallel to the feed-forward network, r = d / 2, and
lambda = 1. Not from the paper: normalized image tokens, dropout on dX, and the initialization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

INITIAL_STD = 0.02


class ITuningAdapter(nn.Module):
    """The adapter of one decoder layer; see the module docstring for the formula.

    Rows are image-major: with `num_images` images and k rows of text per image, row i belongs to image
    i // k. The rows of one image are folded into the query axis, so all of them (such as five captions in
    training, or five beams in generation) attend to a single copy of its keys and values.

    Args:
        hidden_size: Width d of the decoder.
        vision_hidden_size: Width d_v of the visual memory.
        adapter_hidden_size: Width r of the bottleneck.
        num_heads: Attention heads h; must divide `adapter_hidden_size`.
        scale: The constant factor lambda.
        dropout: Dropout probability on the output during training.
        vision_feature_norm: Whether `project_images` normalizes the image tokens for this adapter.

    Example:
    ```python
    >>> import torch
    >>> from ituning_hf.captioner.adapter_ituning import ITuningAdapter
    >>> adapter = ITuningAdapter(hidden_size=12, vision_hidden_size=10, adapter_hidden_size=6, num_heads=2)
    >>> key, value = adapter.project_visual(torch.randn(3, 7, 10))  # 3 images of 7 tokens
    >>> adapter(torch.randn(15, 4, 12), key, value).shape  # 5 rows of 4 tokens for each image
    torch.Size([15, 4, 12])

    ```
    """

    def __init__(
        self,
        hidden_size: int,
        vision_hidden_size: int,
        adapter_hidden_size: int,
        num_heads: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        vision_feature_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = adapter_hidden_size // num_heads
        self.scale = scale
        self.vision_feature_norm = vision_feature_norm
        self.q_proj = nn.Linear(hidden_size, adapter_hidden_size)
        self.k_proj = nn.Linear(vision_hidden_size, adapter_hidden_size)
        self.v_proj = nn.Linear(vision_hidden_size, adapter_hidden_size)
        self.out_proj = nn.Linear(adapter_hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the projections randomly and the output to zero."""
        if not self.out_proj.weight.is_meta:  # on the meta device, random functions import much of torch
            for projection in (self.q_proj, self.k_proj, self.v_proj):
                projection.weight.normal_(0.0, INITIAL_STD)
                projection.bias.zero_()
            self.out_proj.weight.zero_()
            self.out_proj.bias.zero_()
        # Without this flag, Transformers would reinitialize the modules by the decoder's rules, and out_proj
        # would not be zero.
        for module in self.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]

    def project_visual(self, visual_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the visual memory to keys and values, once for all rows and generation steps.

        Args:
            visual_features: The visual memory I, of shape (num_images, N, d_v), which is not normalized here;
                see `project_images`.

        Returns:
            Keys and values, each of shape (num_images, h, N, r / h).
        """
        visual_features = visual_features.to(compute_device(self.k_proj)).to(self.k_proj.weight.dtype)
        split = (*visual_features.shape[:2], self.num_heads, self.head_dim)
        key = self.k_proj(visual_features).view(split)  # (num_images, N, h, r / h)
        value = self.v_proj(visual_features).view(split)  # (num_images, N, h, r / h)
        # Contiguous, because generation reads them at every step.
        return key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        eager: bool = False,
    ) -> torch.Tensor:
        """Compute dX.

        Args:
            hidden_states: X, of shape (num_images * k, T, d), image-major.
            key: From `project_visual`, shape (num_images, h, N, r / h).
            value: From `project_visual`, shape (num_images, h, N, r / h).
            eager: Compute attention without torch's fused kernels.

        Returns:
            dX, of shape (num_images * k, T, d), in the dtype of `hidden_states`.
        """
        query = self._fold_query(hidden_states, key)
        if eager:
            context = self._attention(query, key) @ value  # (num_images, h, k * T, r / h)
        else:
            context = F.scaled_dot_product_attention(query, key, value)  # (num_images, h, k * T, r / h)
        rows, length, _ = hidden_states.shape
        context = context.transpose(1, 2).reshape(rows, length, -1)  # (num_images * k, T, r)
        update = self.scale * self.dropout(self.out_proj(context))
        return update.to(hidden_states.dtype)

    def attention_weights(self, hidden_states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Return A, the attention weights of each text token over the image tokens.

        Args:
            hidden_states: X, of shape (num_images * k, T, d), image-major.
            key: From `project_visual`, shape (num_images, h, N, r / h).

        Returns:
            Shape (num_images * k, h, T, N); each row over N sums to one.
        """
        rows, length, _ = hidden_states.shape
        images = key.shape[0]
        weights = self._attention(self._fold_query(hidden_states, key), key)  # (num_images, h, k * T, N)
        weights = weights.view(images, self.num_heads, rows // images, length, -1)
        return weights.transpose(1, 2).flatten(0, 1)  # (num_images * k, h, T, N)

    def _fold_query(self, hidden_states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Project the queries and fold each image's rows together: (num_images, h, k * T, r / h)."""
        query = self.q_proj(hidden_states.to(self.q_proj.weight.dtype))  # (num_images * k, T, r)
        split = (key.shape[0], -1, self.num_heads, self.head_dim)
        query = query.reshape(split)  # (num_images, k * T, h, r / h)
        return query.transpose(1, 2).to(key.dtype)  # (num_images, h, k * T, r / h)

    def _attention(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Return softmax(Q K^T / sqrt(r / h)), of shape (num_images, h, k * T, N)."""
        scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5  # (num_images, h, k * T, N)
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        return scores.softmax(dim=-1, dtype=at_least_fp32).to(query.dtype)


def normalize_tokens(visual_features: torch.Tensor) -> torch.Tensor:
    """Normalize each image token to mean 0 and variance 1 over its channels, in fp32 or fp64.

    The norm makes training stable: some tokens of vision transformers are many times larger than the others
    (Darcet et al., "Vision Transformers Need Registers", ICLR 2024), and the scale differs between encoders.
    It has no weights, because W_k, W_v and their biases can express them.
    """
    at_least_fp32 = torch.promote_types(visual_features.dtype, torch.float32)
    return F.layer_norm(visual_features.to(at_least_fp32), visual_features.shape[-1:])  # (num_images, N, d_v)


def project_images(
    adapters: dict[Any, ITuningAdapter], visual_features: torch.Tensor
) -> dict[Any, tuple[torch.Tensor, torch.Tensor]]:
    """Compute the keys and values of several adapters, of image tokens normalized if the adapter says so.

    Args:
        adapters: The adapters, by any key.
        visual_features: The encoder's tokens, of shape (num_images, N, d_v).

    Returns:
        The keys and values of each adapter; see `ITuningAdapter.project_visual`.
    """
    memories: dict[tuple[bool, torch.dtype], torch.Tensor] = {}  # normalized and cast once for all layers
    projected = {}
    for name, adapter in adapters.items():
        option = adapter.vision_feature_norm, adapter.k_proj.weight.dtype
        if option not in memories:
            # Computed after the transfer: stored features have half as many bytes.
            tokens = visual_features.to(compute_device(adapter.k_proj))
            memories[option] = (normalize_tokens(tokens) if option[0] else tokens).to(option[1])
        projected[name] = adapter.project_visual(memories[option])
    return projected


def compute_device(module: Any) -> torch.device:
    """Return the device on which a module computes, which differs from that of offloaded weights."""
    module = getattr(module, "base_layer", module)  # of PEFT
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)  # set by Accelerate
    return module.weight.device if device is None else torch.device(device)


def check_rows(rows: int, images: int) -> None:
    """Raise `ValueError` if the text rows cannot be divided evenly among the images."""
    if rows == 0 or images == 0 or rows % images:
        raise ValueError(
            f"input_ids has {rows} rows for {images} images: pass k rows per image, image-major."
        )


def check_visual_features(features: torch.Tensor, width: int, name: str = "visual_features") -> None:
    """Raise an error unless the visual memory has shape (num_images, N, d_v)."""
    if not isinstance(features, torch.Tensor):
        raise TypeError(f"{name} is a {type(features).__name__}, expected a tensor (last_hidden_state).")
    if features.ndim != 3 or features.shape[1] == 0 or features.shape[-1] != width:
        raise ValueError(
            f"{name} has shape {tuple(features.shape)}, expected (num_images, tokens, {width}) as from the "
            "vision encoder that the adapter was trained on."
        )
