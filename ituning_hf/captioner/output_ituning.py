"""The language model's output layer, its largest matrix: read once for few rows, in chunks for the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .inputs_ituning import IGNORE_INDEX

MKL = torch.backends.mkl.is_available()
ROWS_OF_ONE_READING = 16
# Of 50,257 logits: a chunk takes 103 MB in fp32, its gradient as much again.
POSITIONS_AT_ONCE = 512


class OutputLayer(nn.Linear):
    """An output layer that reads its matrix once, however few the rows are.

    MKL, which computes for PyTorch on x86 CPUs, takes fewer than 16 rows three at a time, and reads the
    matrix again for each three. GPT-2's has 154 MB: ten rows, five beams of two images, took 25 ms on two
    cores, and 16 rows 13. So few rows are filled up; logits differ by rounding.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Make logits of shape (..., out_features) of hidden states of shape (..., in_features)."""
        rows = input.shape[:-1].numel()
        is_slow = MKL and input.device.type == "cpu" and input.dtype == torch.float32
        if not (is_slow and 6 < rows < ROWS_OF_ONE_READING):
            return super().forward(input)
        filled = F.pad(input.reshape(rows, -1), (0, 0, 0, ROWS_OF_ONE_READING - rows))
        return super().forward(filled)[:rows].view(*input.shape[:-1], -1)


def read_output_layer_once(text_model: Any) -> None:
    """Let a language model's output layer be an [`OutputLayer`], in place; one of another kind stays."""
    layer = _output_layer(text_model)
    if type(layer) is nn.Linear:
        layer.__class__ = OutputLayer


def restore_output_layer(text_model: Any) -> None:
    """Take `read_output_layer_once` back."""
    layer = _output_layer(text_model)
    if type(layer) is OutputLayer:
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def _output_layer(model: Any) -> Any:
    # PEFT takes a GPT-2 inside any module, which need not know of output layers.
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


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
        logits = output_layer(hidden)
        logits = logits.to(_at_least_fp32(logits.dtype))
        target = target.to(logits.device)
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


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return what a sum over a vocabulary is computed in: never in half precision."""
    return torch.promote_types(dtype, torch.float32)


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
        total = torch.zeros((), device=hidden_states.device, dtype=_at_least_fp32(hidden_states.dtype))
        gradient = torch.empty_like(hidden_states) if wants_gradient else None
        for start in range(0, len(targets), POSITIONS_AT_ONCE):
            chunk = slice(start, start + POSITIONS_AT_ONCE)
            with torch.set_grad_enabled(wants_gradient):
                hidden = hidden_states[chunk].detach().requires_grad_(wants_gradient)
                summed = loss(hidden, targets[chunk])
            if gradient is not None:
                summed.backward()  # autograd.grad would refuse where PyTorch counts operations
                gradient[chunk] = hidden.grad  # type: ignore[assignment]
            total += summed.detach().to(total.device)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * grad_output, None


__all__ = ["OutputLayer", "caption_loss", "read_output_layer_once", "restore_output_layer"]
