"""Changes of the I-Tuning adapter that the study tries, one at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.adapter_ituning import ITuningAdapter


class GatedAdapter(ITuningAdapter):
    """The adapter with a gate that starts at zero, and a random output projection."""

    gate: nn.Parameter

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute dX times the gate."""
        return self.gate.tanh() * super().forward(*args, **kwargs)


def gate(captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """Add a gate to each adapter."""
    for adapter in captioner.adapters().values():
        adapter.gate = nn.Parameter(torch.zeros(()))
        nn.init.normal_(adapter.out_proj.weight, 0.0, 0.02)
        adapter.__class__ = GatedAdapter
    return captioner


def linear_init(captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    """Initialize the weights of queries, keys and values as `nn.Linear` does; biases stay zero."""
    for adapter in captioner.adapters().values():
        for projection in (adapter.q_proj, adapter.k_proj, adapter.v_proj):
            nn.init.kaiming_uniform_(projection.weight, a=5**0.5)
    return captioner
