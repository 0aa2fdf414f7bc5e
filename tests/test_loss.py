"""The captions' loss in chunks, with PyTorch's cross-entropy over all positions as the judge."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ituning_hf import loss_ituning
from ituning_hf.loss_ituning import caption_loss

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 11, 13, 29


@pytest.fixture
def output_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)


def make_batch(labels: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (ROWS * LENGTH,), generator=generator)
    targets[torch.randperm(ROWS * LENGTH, generator=generator)[labels:]] = -100
    return hidden.requires_grad_(), targets.view(ROWS, LENGTH)


def judge(output_layer: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, **options) -> torch.Tensor:
    logits = output_layer(hidden.flatten(0, 1))
    return F.cross_entropy(logits, targets.flatten(), reduction="sum", **options)


@pytest.mark.parametrize("at_once", [1, 7, 19, 512])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("num_items", [None, 5, torch.tensor(5)])
def test_chunks_add_up(output_layer, monkeypatch, at_once: int, label_smoothing: float, num_items):
    monkeypatch.setattr(loss_ituning, "POSITIONS_AT_ONCE", at_once)
    hidden, targets = make_batch()
    loss = caption_loss(output_layer, hidden, targets, num_items, label_smoothing)
    expected = judge(output_layer, hidden, targets, label_smoothing=label_smoothing) / (num_items or 19)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(7 * value, hidden)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_no_more_logits_than_a_chunks_are_made_at_once(output_layer, monkeypatch):
    monkeypatch.setattr(loss_ituning, "POSITIONS_AT_ONCE", 7)
    made = []
    output_layer.register_forward_hook(lambda module, inputs, logits: made.append(len(logits)))
    hidden, targets = make_batch()
    loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    assert made == [7, 7, 5]
    (gradient,) = loss.grad_fn.next_functions[0][0].saved_tensors
    assert gradient.shape == (19, WIDTH)


def test_without_gradients_none_is_computed(output_layer):
    hidden, targets = make_batch()
    with torch.no_grad():
        loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, judge(output_layer, hidden, targets).detach() / 19)


def test_no_label_is_a_loss_of_zero(output_layer):
    hidden, targets = make_batch(labels=0)
    loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_an_output_layer_that_somebody_trains_gets_its_gradient(output_layer):
    output_layer.requires_grad_(True)
    hidden, targets = make_batch()
    found = torch.autograd.grad(caption_loss(output_layer, hidden, targets, 1, 0.0), output_layer.weight)
    wanted = torch.autograd.grad(judge(output_layer, hidden, targets), output_layer.weight)
    torch.testing.assert_close(found, wanted)
