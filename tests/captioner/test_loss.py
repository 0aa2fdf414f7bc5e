"""Packed rows and the chunked loss, compared with loops, PyTorch's loss and unpacked rows."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_batch
from torch import nn
from torch.nn import functional as F

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner import loss_ituning
from ituning_hf.captioner.loss_ituning import caption_loss, compute_logits, next_tokens, pack_rows

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 11, 13, 29


@pytest.fixture
def output_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)


def make_positions(labels: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (ROWS * LENGTH,), generator=generator)
    targets[torch.randperm(ROWS * LENGTH, generator=generator)[labels:]] = -100
    return hidden.requires_grad_(), targets.view(ROWS, LENGTH)


def plain_loss(
    output_layer: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, **options
) -> torch.Tensor:
    logits = output_layer(hidden.flatten(0, 1))
    return F.cross_entropy(logits, targets.flatten(), reduction="sum", **options)


@pytest.mark.parametrize("at_once", [1, 7, 19, 512])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("num_items", [None, 5, torch.tensor(5)])
def test_the_chunked_loss_is_the_plain_loss(
    output_layer, monkeypatch, at_once: int, label_smoothing: float, num_items
):
    monkeypatch.setattr(loss_ituning, "POSITIONS_PER_CHUNK", at_once)
    hidden, targets = make_positions()
    loss = caption_loss(output_layer, hidden, targets, num_items, label_smoothing)
    expected = plain_loss(output_layer, hidden, targets, label_smoothing=label_smoothing) / (num_items or 19)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(7 * value, hidden)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("at_once", [7, 512])
@pytest.mark.parametrize(("label_smoothing", "autocast"), [(0.0, False), (0.3, False), (0.0, True)])
def test_weights_are_factors_of_the_token_losses(
    output_layer, monkeypatch, at_once: int, label_smoothing: float, autocast: bool
):
    monkeypatch.setattr(loss_ituning, "POSITIONS_PER_CHUNK", at_once)
    (hidden, targets), weights = make_positions(), torch.randn(ROWS, LENGTH)
    options = {"reduction": "none", "label_smoothing": label_smoothing}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = caption_loss(output_layer, hidden, targets, 5, label_smoothing, weights)
        losses = F.cross_entropy(output_layer(hidden).flatten(0, 1).float(), targets.flatten(), **options)
    expected = (losses * weights.flatten()).sum() / 5
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(7 * value, hidden)[0] for value in (loss, expected))
    tolerance = {"rtol": 0.02, "atol": 0.1} if autocast else {}  # of the products in bf16
    torch.testing.assert_close(found, wanted, **tolerance)


def test_logits_are_computed_one_chunk_at_a_time(output_layer, monkeypatch):
    monkeypatch.setattr(loss_ituning, "POSITIONS_PER_CHUNK", 7)
    computed = []
    output_layer.register_forward_hook(lambda module, inputs, logits: computed.append(len(logits)))
    hidden, targets = make_positions()
    loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    assert [min(rows, 7) for rows in computed] == [7, 7, 5]  # a few rows may be padded to 16
    (gradient,) = loss.grad_fn.next_functions[0][0].saved_tensors
    assert gradient.shape == (19, WIDTH)


def test_the_gradient_is_not_computed_under_no_grad(output_layer, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a: pytest.fail("a gradient was computed"))
    hidden, targets = make_positions()
    with torch.no_grad():
        loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(output_layer, hidden, targets).detach() / 19)


def test_without_labels_the_loss_is_zero(output_layer):
    hidden, targets = make_positions(labels=0)
    loss = caption_loss(output_layer, hidden, targets, None, 0.0)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_a_trainable_output_layer_gets_its_gradient(output_layer):
    output_layer.requires_grad_(True)
    hidden, targets = make_positions()
    found = torch.autograd.grad(caption_loss(output_layer, hidden, targets, 1, 0.0), output_layer.weight)
    wanted = torch.autograd.grad(plain_loss(output_layer, hidden, targets), output_layer.weight)
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


PADDED = [
    (6, torch.float32, 6),
    (7, torch.float32, 16),
    (15, torch.float32, 16),
    (16, torch.float32, 16),
    (10, torch.float64, 10),
    (10, torch.bfloat16, 10),
]


@pytest.mark.parametrize(("rows", "dtype", "multiplied"), PADDED)
def test_few_fp32_rows_are_padded_to_16(monkeypatch, rows: int, dtype: torch.dtype, multiplied: int):
    monkeypatch.setattr(loss_ituning, "HAS_MKL", True)
    linear = make_linear(False, dtype)
    for layer, expected in ((linear, multiplied), (nn.Sequential(linear), rows)):  # no other layer is padded
        seen = []
        hook = layer.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        assert compute_logits(layer, torch.ones(rows, WIDTH, dtype=dtype)).shape == (rows, VOCABULARY)
        assert seen == [expected]
        hook.remove()


def test_gradients_pass_through_padded_rows():
    layer, hidden = make_linear(True), torch.randn(10, WIDTH, requires_grad=True)
    parameters = (hidden, *layer.parameters())
    found = torch.autograd.grad(compute_logits(layer, hidden).square().sum(), parameters)
    expected = F.linear(hidden, layer.weight, layer.bias).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters))


# --- Packing

HIDDEN_SIZE = 22


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Rows with arbitrary masks, and labels at arbitrary tokens."""
    images, k, length = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 7))
    cell = st.sampled_from(["padding", "token", "label"])
    row = st.lists(cell, min_size=length, max_size=length)
    cells = draw(st.lists(row, min_size=images * k, max_size=images * k))
    ids = torch.arange(images * k * length).view(images * k, length)
    mask = torch.tensor([[int(cell != "padding") for cell in row] for row in cells])
    labelled = torch.tensor([[cell == "label" for cell in row] for row in cells])
    return ids, mask, ids.masked_fill(~labelled, -100), images


def pack_by_loops(ids, mask, targets, images: int) -> list[list[tuple[int, int, int]]]:
    """The tokens, positions and targets of each image, up to the last target of each row."""
    packed = []
    k = len(ids) // images
    for image in range(images):
        tokens = []
        for row in range(image * k, (image + 1) * k):
            row_targets = targets[row].tolist()
            end = max((t + 1 for t, target in enumerate(row_targets) if target != -100), default=0)
            position = 0
            for t in range(end):
                if mask[row, t]:
                    tokens.append((int(ids[row, t]), position, row_targets[t]))
                    position += 1
        packed.append(tokens)
    return packed


@given(batches())
def test_an_images_tokens_are_packed_into_one_row_up_to_each_last_label(batch):
    ids, mask, targets, images = batch
    packed, expected = pack_rows(ids, mask, targets, images, HIDDEN_SIZE, ids + 1), pack_by_loops(*batch)
    longest = max(len(tokens) for tokens in expected)
    if packed is None:
        length = ids.shape[1]
        work = len(ids) * length * (6 * HIDDEN_SIZE + length)
        assert longest == 0 or images * longest * (6 * HIDDEN_SIZE + longest) >= work
        return
    assert {values.shape for values in packed} == {(images, longest)}
    for image, tokens in enumerate(expected):
        found = list(zip(*(values[image].tolist() for values in packed), strict=True))
        weighted = [(token, position, target, token + 1) for token, position, target in tokens]
        assert found == weighted + [(0, 0, -100, 0)] * (longest - len(tokens))


@pytest.mark.parametrize(
    ("mask", "targets"),
    [
        pytest.param([[0, 1, 1]] * 5, [[9, 9, -100]] * 5, id="a label on padding"),
        pytest.param([[1, 1, 1]] * 5, [[9, 9, 9]] * 5, id="no padding"),
        pytest.param([[1, 1, 0]] * 5, [[-100, -100, -100]] * 5, id="no label"),
        pytest.param([[1] * 40 + [0]] * 30, [[9] * 40 + [-100]] * 30, id="attention costs more"),
    ],
)
def test_rows_are_not_packed(mask: list[list[int]], targets: list[list[int]]):
    mask, targets = torch.tensor(mask), torch.tensor(targets)
    assert pack_rows(torch.ones_like(mask), mask, targets, 1, HIDDEN_SIZE) is None


@pytest.mark.parametrize(
    ("side", "warns"), [("left", False), ("right", False), ("left", True), ("right", True)]
)
def test_labels_on_padding_are_reported(captioner, caplog: pytest.LogCaptureFixture, side: str, warns: bool):
    batch = make_batch(side=side)
    padding = -100 if not warns else 0
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, padding)
    loss_ituning.logger.warning_once.cache_clear()
    captioner.train()(**batch)
    assert ("labels are on padding" in caplog.text) == warns


def run(model: ITuningForCaptioning, **batch: Any) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the shape of the rows that the decoder saw, the loss, and its gradients."""
    seen = []
    hook = model.text_model.transformer.h[0].register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[:2])
    )
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    hook.remove()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return seen[0], loss.detach(), gradients


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("images", "k", "implementation"), [(3, 2, "sdpa"), (3, 5, "sdpa"), (1, 5, "eager"), (4, 1, "sdpa")]
)
def test_packed_rows_have_the_loss_and_gradients_of_unpacked_rows(
    captioner, training: bool, images: int, k: int, implementation: str
):
    captioner.set_attn_implementation(implementation)
    captioner = captioner.double().train(training)
    batch = make_batch(images, k)
    batch["pixel_values"] = batch["pixel_values"].double()
    batch["label_weights"] = torch.randn(batch["labels"].shape)
    shape, *found = run(captioner, **batch, skip_logits=True)
    as_given, *expected = run(captioner, **batch, output_hidden_states=True)
    assert as_given == batch["input_ids"].shape
    lengths = batch["attention_mask"].sum(1) - 1
    assert shape == (images, lengths.view(images, k).sum(1).max())
    torch.testing.assert_close(found, expected)


def test_arguments_of_none_do_not_prevent_packing(captioner):
    nothing = dict.fromkeys(("inputs_embeds", "output_attentions", "output_hidden_states"))  # as from PEFT
    shape, _, _ = run(captioner, **make_batch(), skip_logits=True, **nothing)
    assert shape[0] == 3


@pytest.mark.parametrize(
    "options",
    [
        {"skip_logits": False},
        {"skip_logits": None, "logits_to_keep": 1},
        {"output_attentions": True},
        {"use_cache": True},
        {"position_ids": torch.arange(8).expand(15, -1)},
    ],
)
def test_rows_are_not_packed_for_other_outputs_and_positions(captioner, options: dict[str, Any]):
    captioner.set_attn_implementation("eager")
    shape, _, _ = run(captioner, **make_batch(), **{"skip_logits": True} | options)
    assert shape == (15, 8)


def test_rows_are_not_packed_if_the_configuration_asks_for_hidden_states(captioner):
    captioner.config.text_config.output_hidden_states = True
    assert captioner(**make_batch(), skip_logits=True).hidden_states[0].shape == (15, 8, HIDDEN_SIZE)


def test_a_padding_token_at_the_start_of_rows_causes_no_warning(captioner, caplog):
    captioner.config.text_config.pad_token_id = captioner.config.text_config.bos_token_id
    batch = make_batch()
    batch["input_ids"][:, 0] = captioner.config.text_config.bos_token_id
    shape, _, _ = run(captioner, **batch, skip_logits=True)
    assert shape[0] == 3
    assert not caplog.records


def test_each_position_is_scored_against_the_next_label():
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert next_tokens(labels).tolist() == [[6, 7, -100], [-100, -100, -100]]
