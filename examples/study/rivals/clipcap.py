"""ClipCap: an MLP maps the image to a prefix of token embeddings.

Mokady, Hertz, Bermano: *ClipCap: CLIP Prefix for Image Captioning*, 2021, <https://arxiv.org/abs/2111.09734>,
section 3; code at <https://github.com/rmokady/CLIP_prefix_caption>, `train.py`.

    prefix = tanh(x W_1 + b_1) W_2 + b_2     P x d
    x      d_v  the image: the class token of the encoder

As in the repository: P = 10, PyTorch's initialization, and h = P d / 2 channels between the two layers.
There, x is CLIP's projected image embedding, and captions have no BOS token. The paper trains the language
model with this MLP, and proposes a transformer for the mapping if the language model is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .frozen import FrozenCaptioner


class ClipCap(FrozenCaptioner):
    """ClipCap with a frozen language model: h (d_v + 1) + (h + 1) P d trained parameters.

    Args:
        text_model: The language model, of width d; see [`FrozenCaptioner`].
        vision_hidden_size: The encoder's width d_v.
        num_parameters: Choose the h that comes closest to this number. By default, h is P d / 2.
        prefix_length: P, the number of embeddings before the caption.
    """

    def __init__(
        self,
        text_model: Any,
        vision_hidden_size: int,
        num_parameters: int | None = None,
        prefix_length: int = 10,
    ) -> None:
        super().__init__(text_model)
        size = prefix_length * self.hidden_size
        width = size // 2
        if num_parameters is not None:
            width = round((num_parameters - size) / (vision_hidden_size + 1 + size))
        self.mapping = nn.Sequential(nn.Linear(vision_hidden_size, width), nn.Tanh(), nn.Linear(width, size))

    def read_images(self, visual_features: torch.Tensor) -> torch.Tensor:
        """Return the prefix, (B, P, d), of images of shape (B, N, d_v)."""
        return self.mapping(visual_features[:, 0]).view(len(visual_features), -1, self.hidden_size)
