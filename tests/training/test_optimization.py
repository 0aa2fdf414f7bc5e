"""AdamW's parameter groups, and the learning rate schedule."""

import pytest
import torch
from torch import nn

from ituning_hf.training.optimization import create_optimizer, create_schedule


def test_only_trainable_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    model[0].requires_grad_(False)
    decaying, free = create_optimizer(model, learning_rate=0.1, weight_decay=0.3).param_groups
    assert [p is model[1].weight for p in decaying["params"]] == [True]
    assert [p is model[1].bias for p in free["params"]] == [True]
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


def test_the_rate_rises_and_then_decays():
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = create_schedule(optimizer, "linear", warmup_ratio=1 / 3, total_steps=6)
    rates = []
    for _ in range(7):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
