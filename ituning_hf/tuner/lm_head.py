"""The language model's output layer, with padded rows as in the captioner (see `pad_lm_head_rows`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..captioner.loss_ituning import pad_lm_head_rows


class PaddedLMHead(nn.Linear):
    """An output layer that pads a few rows to 16 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (..., vocab_size) for hidden states of shape (..., d)."""
        return pad_lm_head_rows(super().forward, input)


def replace_lm_head(model: Any, old: type[nn.Linear], new: type[nn.Linear]) -> None:
    """Replace a language model's output layer of one class by one of another class with the same weights."""
    # PEFT takes a GPT-2 inside any module, which need not have an output layer.
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(layer) is old:
        replacement = object.__new__(new)
        replacement.__dict__.update(vars(layer))
        model.set_output_embeddings(replacement)


__all__ = ["PaddedLMHead", "replace_lm_head"]
