"""The captions' loss, without the logits of a whole batch in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .inputs_ituning import IGNORE_INDEX

# Of 50,257 logits: a chunk takes 103 MB in fp32, its gradient as much again.
POSITIONS_AT_ONCE = 512


def caption_loss(
    output_layer: nn.Module,
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Sum the cross-entropy of the positions that have a target, and divide it.

    Logits are computed only where there is a target. A compiled graph has static shapes, so it computes them
    everywhere.

    Args:
        output_layer: Makes logits of hidden states. Where it is frozen, a chunk of logits at a time.
        hidden_states: Shape (rows, T, d).
        targets: The token that each position is scored against, of shape (rows, T), -100 where there is none.
        num_items_in_batch: What to divide by; the number of targets by default.
        label_smoothing: The share of the target's probability that is spread over the vocabulary.
    """
    targets = targets.to(hidden_states.device)
    labelled = targets != IGNORE_INDEX
    if num_items_in_batch is None:
        num_items_in_batch = labelled.sum().clamp(min=1)

    def summed(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = output_layer(hidden).float()
        return F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)

    is_frozen = not any(p.requires_grad for p in output_layer.parameters())
    if torch.compiler.is_compiling():
        total = summed(hidden_states.flatten(0, 1), targets.flatten())
    else:
        in_chunks = partial(_ChunkedSum.apply, summed) if is_frozen else summed
        total = in_chunks(hidden_states[labelled], targets[labelled])
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


class _ChunkedSum(torch.autograd.Function):
    """A sum over positions whose gradient is computed with it, chunk by chunk.

    Of the logits nothing is kept for the backward pass: the output layer is frozen, so all that it asks for
    is the gradient of the hidden states, which are 65 times smaller at GPT-2's vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        wants_gradient = ctx.needs_input_grad[1]
        total = torch.zeros((), device=hidden_states.device)
        gradient = torch.empty_like(hidden_states) if wants_gradient else None
        for start in range(0, len(targets), POSITIONS_AT_ONCE):
            chunk = slice(start, start + POSITIONS_AT_ONCE)
            with torch.set_grad_enabled(wants_gradient):
                hidden = hidden_states[chunk].detach().requires_grad_(wants_gradient)
                summed = loss(hidden, targets[chunk])
            if gradient is not None:
                (gradient[chunk],) = torch.autograd.grad(summed, hidden)
            total += summed.detach().to(total.device)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * grad_output, None


__all__ = ["caption_loss"]
