"""AdamW over the adapters, and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import get_scheduler


def create_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, fused: bool = True
) -> torch.optim.AdamW:
    """Create AdamW over the trainable parameters; matrices decay, biases do not.

    `fused` must be False with fp16's gradient scaler: Accelerate detects a skipped step by the optimizer not
    being called, but a fused one is called and skips internally.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def create_schedule(
    optimizer: torch.optim.Optimizer, name: str, warmup_ratio: float, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Create a schedule that rises linearly in the first `warmup_ratio` of the steps and then decays."""
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=math.ceil(warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )
