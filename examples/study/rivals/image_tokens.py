"""Projected image tokens before the text, as in LLaVA 1.5, with nanoVLM's pixel shuffle.

Liu, Li, Li, Lee: *Improved Baselines with Visual Instruction Tuning*, 2023,
<https://arxiv.org/abs/2310.03744>, section 3; code at <https://github.com/haotian-liu/LLaVA>,
`multimodal_projector/builder.py`. The pixel shuffle is from <https://github.com/huggingface/nanoVLM>,
`models/modality_projector.py`.

    I'     = pixel shuffle of I              N / 4 x 4 d_v
    prefix = GELU(I' W_1 + b_1) W_2 + b_2    N / 4 x d
    I        N x d_v  the patches, without the class token

The pixel shuffle concatenates each square of 2 x 2 patches. As in LLaVA: two layers, PyTorch's
initialization, and h = d channels between them. nanoVLM has one layer instead, without a bias.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import nn

from .frozen import FrozenCaptioner

SIDE = 2  # patches on each side of a square


class ImageTokens(FrozenCaptioner):
    """Image tokens before the text: h (4 d_v + 1) + (h + 1) d trained parameters.

    Args:
        text_model: The language model, of width d; see [`FrozenCaptioner`].
        vision_hidden_size: The encoder's width d_v.
        num_parameters: Choose the h that comes closest to this number. By default, h is d.
    """

    def __init__(self, text_model: Any, vision_hidden_size: int, num_parameters: int | None = None) -> None:
        super().__init__(text_model)
        inputs, width = SIDE**2 * vision_hidden_size, self.hidden_size
        if num_parameters is not None:
            width = round((num_parameters - self.hidden_size) / (inputs + 1 + self.hidden_size))
        self.projector = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, self.hidden_size)
        )

    def read_images(self, visual_features: torch.Tensor) -> torch.Tensor:
        """Return the prefix, (B, N / 4, d), of images of shape (B, N, d_v) or (B, 1 + N, d_v)."""
        return self.projector(pixel_shuffle(visual_features))


def pixel_shuffle(visual_features: torch.Tensor) -> torch.Tensor:
    """Concatenate each square of 2 x 2 patches: (B, N, d_v) or (B, 1 + N, d_v) to (B, N / 4, 4 d_v)."""
    images, tokens, width = visual_features.shape
    rows = isqrt(tokens) // SIDE  # rows of squares
    patches = visual_features[:, -((SIDE * rows) ** 2) :]  # (B, N, d_v)
    squares = patches.reshape(images, rows, SIDE, rows, SIDE, width).transpose(2, 3)
    return squares.reshape(images, rows**2, SIDE**2 * width)
