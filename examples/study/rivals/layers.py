"""What the two rivals with cross-attention share: layers that see the image.

Both use the cross-attention of I-Tuning's adapter, [`ITuningAdapter`]: its four projections, its heads, and
the captions or beams of an image folded together. They differ from I-Tuning, and from each other, in where it
is, what surrounds it, and how it is initialized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ituning_hf.captioner.adapter_ituning import ITuningAdapter

from .frozen import FrozenCaptioner


class ImageLayer(nn.Module):
    """A frozen layer with cross-attention.

    Args:
        layer: The layer.
        attention: The cross-attention.
    """

    def __init__(self, layer: nn.Module, attention: ITuningAdapter) -> None:
        super().__init__()
        self.layer = layer
        self.attention = attention

    def read_images(self, visual_features: torch.Tensor) -> None:
        """Compute the keys and values of images, (B, N, d_v), for the rows of text that follow."""
        self.key, self.value = self.attention.project_visual(visual_features)  # (B, h, N, r / h)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the cross-attention, (rows, T, d), for queries of that shape."""
        return self.attention(x, self.key, self.value)


class LayerCaptioner(FrozenCaptioner):
    """A captioner whose language model has other layers.

    Args:
        text_model: The language model; see [`FrozenCaptioner`].
        wrap: Returns the layer that replaces a frozen one.
    """

    def __init__(self, text_model: Any, wrap: Callable[[nn.Module], ImageLayer]) -> None:
        super().__init__(text_model)
        for i, layer in enumerate(self.layers):
            self.layers[i] = wrap(layer)

    @property
    def layers(self) -> Any:
        """The layers, bottom first."""
        return self.family.layers(self.text_model)

    def read_images(self, visual_features: torch.Tensor) -> torch.Tensor:
        """Give images of shape (B, N, d_v) to the layers, and return a prefix of no tokens, (B, 0, d)."""
        for layer in self.layers:
            layer.read_images(visual_features)
        return self.layers[0].key.new_empty(len(visual_features), 0, self.hidden_size)
