"""Where a step stands beside what the processor can compute, and what a whole run would take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# The paper's run: 30 epochs of the captions of COCO's train and restval images, in Karpathy's splits.
COCO_CAPTIONS, COCO_EPOCHS = 566_435, 30

# PyTorch's counter knows the attention kernels of GPUs alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, out_shape=None, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, out_shape=None, **__: sdpa_backward_flop_count(
            grad, query, key, value
        )
    ),
}


def count_flops(step: Callable[[], object]) -> int:
    """Run a step and count the operations of its matrix products and attention, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def matrix_rate(device: torch.device | str, dtype: torch.dtype, width: int, repetitions: int = 5) -> float:
    """Return the operations a second of the product of two square matrices.

    Args:
        device: Where it is computed.
        dtype: Of both.
        width: Rows and columns of each.
        repetitions: How many are timed; their median counts.
    """
    one, other = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + repetitions):
        started = time.perf_counter()
        (one @ other)[0, 0].item()  # waits for a GPU, too
        seconds.append(time.perf_counter() - started)
    return 2 * width**3 / statistics.median(seconds[1:])


def coco_minutes(seconds: float, captions: int) -> float:
    """Return the minutes of the whole COCO run at a step's seconds and number of captions."""
    return COCO_EPOCHS * COCO_CAPTIONS / captions * seconds / 60
