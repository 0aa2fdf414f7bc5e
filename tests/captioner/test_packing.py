"""Rows of one image in one: a loop over tokens as the judge, and the captioner with its rows as given."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ADAPTER, IMAGE_SIZE, make_captioner

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.loss_ituning import TextRows, next_tokens
from ituning_hf.captioner.loss_ituning import pack_rows as pack

VOCABULARY, WIDTH = 300, 22


@st.composite
def batches(draw: st.DrawFn) -> tuple[TextRows, int]:
    """Rows with any mask, and labels at any of its tokens."""
    images, k, length = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 7))
    cell = st.sampled_from(["padding", "token", "label"])
    row = st.lists(cell, min_size=length, max_size=length)
    cells = draw(st.lists(row, min_size=images * k, max_size=images * k))
    ids = torch.arange(images * k * length).view(images * k, length)
    mask = torch.tensor([[int(cell != "padding") for cell in row] for row in cells])
    labelled = torch.tensor([[cell == "label" for cell in row] for row in cells])
    return TextRows(ids, mask, None, ids.masked_fill(~labelled, -100)), images


def by_loops(rows: TextRows, images: int) -> list[list[tuple[int, int, int]]]:
    """Each image's tokens with their positions and targets, up to each row's last target."""
    packed = []
    k = len(rows.input_ids) // images
    for image in range(images):
        tokens = []
        for row in range(image * k, (image + 1) * k):
            targets = rows.targets[row].tolist()
            end = max((t + 1 for t, target in enumerate(targets) if target != -100), default=0)
            position = 0
            for t in range(end):
                if rows.attention_mask[row, t]:
                    tokens.append((int(rows.input_ids[row, t]), position, targets[t]))
                    position += 1
        packed.append(tokens)
    return packed


@given(batches())
def test_each_images_tokens_stand_in_one_row_up_to_the_last_label(batch):
    rows, images = batch
    packed, expected = pack(rows, images, WIDTH), by_loops(rows, images)
    longest = max(len(tokens) for tokens in expected)
    if not packed.are_packed:
        length = rows.input_ids.shape[1]
        given_work = len(rows.input_ids) * length * (6 * WIDTH + length)
        assert packed is rows
        assert longest == 0 or images * longest * (6 * WIDTH + longest) >= given_work
        return
    assert packed.input_ids.shape == packed.position_ids.shape == packed.targets.shape == (images, longest)
    for image, tokens in enumerate(expected):
        columns = (packed.input_ids[image], packed.position_ids[image], packed.targets[image])
        found = list(zip(*(column.tolist() for column in columns), strict=True))
        assert found == tokens + [(0, 0, -100)] * (longest - len(tokens))


def rows_of(mask: list[list[int]], labels: list[list[int]], position_ids: Any = None) -> TextRows:
    mask, labels = torch.tensor(mask), torch.tensor(labels)
    return TextRows(torch.ones_like(mask), mask, position_ids, labels)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(rows_of([[0, 1, 1]] * 5, [[9, 9, -100]] * 5), id="a label on padding"),
        pytest.param(rows_of([[1, 1, 1]] * 5, [[9, 9, 9]] * 5), id="nothing to leave out"),
        pytest.param(rows_of([[1, 1, 0]] * 5, [[-100, -100, -100]] * 5), id="no label"),
        pytest.param(
            rows_of([[1, 1, 0]] * 5, [[9, -100, -100]] * 5, torch.arange(3).expand(5, -1)), id="own positions"
        ),
        pytest.param(
            rows_of([[1] * 40 + [0]] * 30, [[9] * 40 + [-100]] * 30), id="so long that attention costs more"
        ),
    ],
)
def test_rows_stay_as_they_are(rows: TextRows):
    assert pack(rows, 1, WIDTH) is rows


# --- In the captioner


@pytest.fixture
def captioner(backbones) -> ITuningForCaptioning:
    return make_captioner(backbones, **ADAPTER)


def make_batch(images: int = 3, k: int = 5, length: int = 8, side: str = "right") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = images * k
    input_ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    lengths = (3 + torch.arange(rows) * 3 % (length - 2))[:, None]
    places = torch.arange(length) if side == "right" else torch.arange(length).flip(0)
    attention_mask = (places < lengths).long()
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    if side == "left":  # the first token is scored by none, so that no label hangs on padding
        labels[torch.arange(rows), length - lengths[:, 0]] = -100
    pixels = torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    text = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {"pixel_values": pixels, **text}


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


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("images", "k"), [(3, 5), (1, 5), (4, 1)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_rows_give_the_loss_and_gradients_of_the_rows_as_given(
    captioner, side: str, training: bool, images: int, k: int, implementation: str
):
    captioner.set_attn_implementation(implementation)
    captioner = captioner.double().train(training)
    batch = make_batch(images, k, side=side)
    batch["pixel_values"] = batch["pixel_values"].double()
    shape, loss, gradients = run(captioner, **batch)
    as_given, given_loss, given_gradients = run(captioner, **batch, output_hidden_states=True)
    assert as_given == (images * k, 8)
    lengths = batch["attention_mask"].sum(1) - 1
    assert shape == (images, lengths.view(images, k).sum(1).max())
    # The loss is in single precision in any case.
    torch.testing.assert_close(loss, given_loss)
    assert gradients.keys() == given_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, given_gradients[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "wish",
    [
        {"logits_to_keep": 1},
        {"output_attentions": True},
        {"use_cache": True},
        {"position_ids": torch.arange(8).expand(15, -1)},
    ],
)
def test_rows_stay_as_given_for_all_that_shows_them(captioner, wish: dict[str, Any]):
    captioner.set_attn_implementation("eager")
    shape, _, _ = run(captioner, **make_batch(), **wish)
    assert shape == (15, 8)


def test_a_configuration_that_asks_for_hidden_states_gets_them_as_given(captioner):
    captioner.config.text_config.output_hidden_states = True
    assert captioner(**make_batch()).hidden_states[0].shape == (15, 8, WIDTH)


def test_a_padding_token_of_the_decoder_brings_no_warning(captioner, caplog):
    captioner.config.text_config.pad_token_id = captioner.config.text_config.bos_token_id
    batch = make_batch()
    batch["input_ids"][:, 0] = captioner.config.text_config.bos_token_id
    shape, _, _ = run(captioner, **batch)
    assert shape[0] == 3
    assert not caplog.records


def test_the_last_label_needs_only_what_is_before_it():
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert next_tokens(labels).tolist() == [[6, 7, -100], [-100, -100, -100]]
