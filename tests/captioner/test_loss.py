"""The output layer with few rows, and the captions' loss in chunks; PyTorch's own are the judges."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ituning_hf.captioner import loss_ituning
from ituning_hf.captioner.loss_ituning import caption_loss, compute_logits

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
    monkeypatch.setattr(loss_ituning, "POSITIONS_PER_CHUNK", at_once)
    hidden, targets = make_batch()
    loss = caption_loss(output_layer, hidden, targets, num_items, label_smoothing)
    expected = judge(output_layer, hidden, targets, label_smoothing=label_smoothing) / (num_items or 19)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(7 * value, hidden)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_no_more_logits_than_a_chunks_are_made_at_once(output_layer, monkeypatch):
    monkeypatch.setattr(loss_ituning, "POSITIONS_PER_CHUNK", 7)
    made = []
    output_layer.register_forward_hook(lambda module, inputs, logits: made.append(len(logits)))
    hidden, targets = make_batch()
    loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    assert made == [7, 7, 5]
    (gradient,) = loss.grad_fn.next_functions[0][0].saved_tensors
    assert gradient.shape == (19, WIDTH)


def test_without_gradients_none_is_computed(output_layer, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a: pytest.fail("a gradient was computed"))
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


# --- Few rows


def make_linear(bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 5), (3, 5), (1, 11, 1), (16,), (0,), (4, 9)])
def test_logits_are_those_of_a_linear_layer(bias: bool, shape: tuple[int, ...]):
    layer = make_linear(bias)
    hidden = torch.randn(*shape, WIDTH)
    logits = compute_logits(layer, hidden)
    assert logits.shape == (*shape, VOCABULARY)
    torch.testing.assert_close(logits, F.linear(hidden, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("rows", "dtype", "multiplied"),
    [
        (6, torch.float32, 6),
        (7, torch.float32, 16),
        (15, torch.float32, 16),
        (16, torch.float32, 16),
        (10, torch.float64, 10),
        (10, torch.bfloat16, 10),
    ],
)
def test_few_fp32_rows_are_padded_to_16(monkeypatch, rows: int, dtype: torch.dtype, multiplied: int):
    monkeypatch.setattr(loss_ituning, "HAS_MKL", True)
    seen = []
    layer = make_linear(False, dtype)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    assert compute_logits(layer, torch.ones(rows, WIDTH, dtype=dtype)).shape == (rows, VOCABULARY)
    assert seen == [multiplied]


def test_rows_of_another_kind_of_layer_are_not_padded():
    seen = []
    layer = nn.Sequential(make_linear(False))
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    compute_logits(layer, torch.ones(10, WIDTH))
    assert seen == [10]


def test_gradients_pass_through_padded_rows():
    layer, hidden = make_linear(True), torch.randn(10, WIDTH, requires_grad=True)
    parameters = (hidden, *layer.parameters())
    found = torch.autograd.grad(compute_logits(layer, hidden).square().sum(), parameters)
    expected = F.linear(hidden, layer.weight, layer.bias).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters))
