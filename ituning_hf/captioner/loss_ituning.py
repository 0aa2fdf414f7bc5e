"""The loss: all captions of an image packed into one row, and cross-entropy computed in chunks.

Packing. In a batch, all captions are padded to the length of the longest one. If only the loss is needed, all
captions of an image are packed into one row without padding instead. Position ids restart at 0 with each
caption, from which Transformers' mask functions infer where captions begin. The adapter then gets one row per
image instead of k. The sum of the token losses is the same.

Chunks. The output layer is the language model's largest matrix, and it is frozen. Logits are computed for a
few hundred positions at a time, together with the gradient of the hidden states, and are not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100  # the label of positions without a target, as in PyTorch
HAS_MKL = torch.backends.mkl.is_available()  # read here: a compiled graph cannot call it
MKL_BLOCK_ROWS = 16
# With a vocabulary of 50,257, a chunk of logits takes 103 MB in fp32, and its gradient the same.
POSITIONS_PER_CHUNK = 512


def pad_lm_head_rows(
    lm_head: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor
) -> torch.Tensor:
    """Compute logits, (..., d) to (..., vocab_size), padding a small number of rows to 16 on a CPU.

    MKL, PyTorch's library on x86 CPUs, multiplies fewer than 16 rows three at a time and reads the matrix
    again for every three. With a matrix of 154 MB and two cores, ten rows (five beams of two images) took
    25 ms and 16 rows took 13 ms. Logits differ by rounding.
    """
    rows = hidden_states.shape[:-1].numel()
    is_fp32_on_cpu = hidden_states.device.type == "cpu" and hidden_states.dtype == torch.float32
    if not (is_fp32_on_cpu and HAS_MKL and 6 < rows < MKL_BLOCK_ROWS):
        return lm_head(hidden_states)
    padded = F.pad(hidden_states.reshape(rows, -1), (0, 0, 0, MKL_BLOCK_ROWS - rows))  # (16, d)
    return lm_head(padded)[:rows].view(*hidden_states.shape[:-1], -1)


def compute_logits(lm_head: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply the output layer: (..., d) to (..., vocab_size)."""
    is_linear = type(lm_head) is nn.Linear  # not quantized or changed by PEFT
    return pad_lm_head_rows(lm_head, hidden_states) if is_linear else lm_head(hidden_states)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return the target of each position: the label of the next position."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (rows, T)


def next_weights(weights: torch.Tensor) -> torch.Tensor:
    """Return the weight of each position's target: that of the label of the next position."""
    return F.pad(weights[:, 1:], (0, 1))  # (rows, T)


def positions_from_mask(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return the last `length` positions, counted from each row's first token: (rows, length)."""
    positions = attention_mask.long().cumsum(dim=-1) - 1  # (rows, past length + length)
    return positions.clamp(min=0)[:, -length:]


def pack_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    targets: torch.Tensor,
    num_images: int,
    hidden_size: int,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """Pack the rows of each image into one row.

    `input_ids`, `attention_mask`, `targets` and `weights` have shape (num_images * k, T), image-major.
    Returns token ids, position ids, targets and weights (None if not given), each of shape (num_images, L),
    where L is the largest number of tokens of an image; or None if packing saves nothing or is not possible.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
    if mask.shape != input_ids.shape or torch.compiler.is_compiling():  # compiled graphs have static shapes
        return None
    targets = targets.to(mask.device)
    is_labelled, is_token = targets != IGNORE_INDEX, mask.bool()  # (num_images * k, T)
    is_needed = is_labelled.flip(1).cumsum(1).flip(1) > 0  # this position or a later one has a target
    is_kept = is_needed & is_token
    on_padding = is_labelled & ~is_token
    scored_padding = on_padding[:, :-1] & ~is_token[:, 1:]  # the target is on padding, too
    counts = [*is_kept.view(num_images, -1).sum(1), on_padding.sum(), scored_padding.sum()]
    *sizes, labels_on_padding, is_padding_scored = torch.stack(counts).tolist()  # a single transfer
    if is_padding_scored:
        logger.warning_once(
            "Some labels are on padding, which the model then learns to generate: set them to -100, or "
            "prepare the batch with processor(images=..., captions=...)."
        )
    if labels_on_padding or not _is_less_work(num_images, max(sizes), is_kept.shape, hidden_size):
        return None

    def pack(values: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return pad_sequence(values[is_kept].split(sizes), batch_first=True, padding_value=padding)

    position_ids = positions_from_mask(mask, mask.shape[1])
    packed_weights = None if weights is None else pack(weights.to(mask.device))
    return pack(input_ids), pack(position_ids), pack(targets, IGNORE_INDEX), packed_weights


def _is_less_work(num_images: int, longest: int, shape: torch.Size, hidden_size: int) -> bool:
    """Compare the multiplications in a layer: 12 d^2 per token, and 2 d per pair of tokens."""
    rows, length = shape
    packed = num_images * longest * (6 * hidden_size + longest)
    return 0 < packed < rows * length * (6 * hidden_size + length)


def caption_loss(
    output_layer: nn.Module,
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None,
    label_smoothing: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divide the sum of the token losses by the number of targets.

    `hidden_states` has shape (rows, T, d). `targets`, of shape (rows, T), has the target token of each
    position, or -100. `num_items_in_batch` replaces the number of targets as divisor. `weights`, of shape
    (rows, T), are factors of the token losses.

    Logits are computed only at positions with a target, except in a compiled graph, which has static shapes.
    If the output layer is frozen, the loss is computed in chunks.
    """
    targets = targets.to(hidden_states.device)
    is_labelled = targets != IGNORE_INDEX  # (rows, T)
    if num_items_in_batch is None:
        num_items_in_batch = is_labelled.sum().clamp(min=1)

    is_compiling = torch.compiler.is_compiling()

    def scored(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(0, 1) if is_compiling else values[is_labelled]

    is_frozen = not any(p.requires_grad for p in output_layer.parameters())
    compute = _ChunkedSum.apply if is_frozen and not is_compiling else _summed_loss
    scored_weights = None if weights is None else scored(weights.to(targets.device))
    logits_of = partial(compute_logits, output_layer)
    total = compute(scored(hidden_states), scored(targets), scored_weights, logits_of, label_smoothing)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _summed_loss(
    hidden: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    label_smoothing: float,
) -> torch.Tensor:
    logits = logits_of(hidden)  # (positions, vocab_size)
    logits = logits.to(_at_least_fp32(logits.dtype))
    target = target.to(logits.device)
    if weight is None:
        return F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    return (losses * weight.to(losses)).sum()  # autocast would compute a product of vectors in bf16


@torch.no_grad()
def _loss_and_gradient(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of the token losses, and its gradient of the shape of `logits`.

    Autograd would write the gradient of the vocabulary three times, and label smoothing a fourth time.
    """
    log_p = logits.to(_at_least_fp32(logits.dtype)).log_softmax(dim=-1)  # (positions, vocab_size)
    target = target.to(logits.device).unsqueeze(1)  # (positions, 1)
    losses = -log_p.gather(1, target).squeeze(1)  # (positions,)
    if label_smoothing > 0:
        losses = losses.lerp(-log_p.mean(dim=-1), label_smoothing)
    gradient = log_p.exp_()
    if label_smoothing > 0:
        gradient -= label_smoothing / logits.shape[-1]
    gradient.scatter_add_(1, target, torch.full_like(gradient[:, :1], label_smoothing - 1))
    if weight is not None:
        weight = weight.to(losses)
        losses, gradient = losses * weight, gradient.mul_(weight.unsqueeze(1))
    return losses.sum(), gradient.to(logits.dtype)


class _ChunkedSum(torch.autograd.Function):
    """`_summed_loss`, whose gradient is computed chunk by chunk in the forward pass, and saved."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,  # (positions, d)
        targets: torch.Tensor,  # (positions,)
        weights: torch.Tensor | None,  # (positions,)
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        label_smoothing: float,
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden_states.device, dtype=_at_least_fp32(hidden_states.dtype))
        gradient = torch.empty_like(hidden_states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), POSITIONS_PER_CHUNK):
            chunk = slice(start, start + POSITIONS_PER_CHUNK)
            hidden, target = hidden_states[chunk].detach(), targets[chunk]
            weight = None if weights is None else weights[chunk]
            if gradient is None:
                loss = _summed_loss(hidden, target, weight, logits_of, label_smoothing)
            else:
                with torch.enable_grad():
                    logits = logits_of(hidden.requires_grad_())
                loss, logits_gradient = _loss_and_gradient(logits, target, weight, label_smoothing)
                logits.backward(logits_gradient)  # PyTorch's operation counter does not support autograd.grad
                gradient[chunk] = hidden.grad  # type: ignore[assignment]
            total += loss.to(total.device)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None
