"""The adapter, compared with its formula written out as loops in float64."""

import pytest
import torch
from reference import attend, linear, standardize

from ituning_hf.captioner import adapter_ituning
from ituning_hf.captioner.adapter_ituning import ITuningAdapter, normalize_tokens, project_images

# No two sizes are equal and none divides the hidden sizes, so that a swapped axis fails.
IMAGES, ROWS_PER_IMAGE, LENGTH, TOKENS = 2, 4, 6, 7
HIDDEN, VISION_HIDDEN, HEADS, HEAD_DIM = 13, 11, 5, 3
RANK = HEADS * HEAD_DIM
SCALE = 1.7


def make_adapter(**options) -> ITuningAdapter:
    """An adapter whose every parameter changes the output."""
    torch.manual_seed(5)
    adapter = ITuningAdapter(HIDDEN, VISION_HIDDEN, RANK, HEADS, **{"scale": SCALE} | options)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.6)
    return adapter


def make_inputs(images: int = IMAGES, k: int = ROWS_PER_IMAGE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    hidden_states = torch.randn(images * k, LENGTH, HIDDEN, generator=generator)
    return hidden_states, torch.randn(images, TOKENS, VISION_HIDDEN, generator=generator)


def run(
    adapter: ITuningAdapter, hidden_states: torch.Tensor, memory: torch.Tensor, **options
) -> torch.Tensor:
    return adapter(hidden_states, *adapter.project_visual(memory), **options)


def expected_update(
    adapter: ITuningAdapter, hidden_states: torch.Tensor, memory: torch.Tensor
) -> torch.Tensor:
    """The formula in float64, one row, one head and one token at a time."""
    w = {name: p.detach().double() for name, p in adapter.named_parameters()}
    hidden_states, memory = hidden_states.double(), memory.double()
    k, rows = len(hidden_states) // len(memory), []
    for i, x in enumerate(hidden_states):
        key, value = (linear(memory[i // k], w, f"{part}_proj") for part in "kv")
        rows.append(linear(attend(linear(x, w, "q_proj"), key, value, HEADS), w, "out_proj"))
    return adapter.scale * torch.stack(rows)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("images", "k"), [(1, 1), (1, ROWS_PER_IMAGE), (IMAGES, 1), (IMAGES, ROWS_PER_IMAGE)]
)
def test_follows_the_formula(images: int, k: int, eager: bool):
    adapter, inputs = make_adapter(), make_inputs(images, k)
    expected = expected_update(adapter, *inputs)
    torch.testing.assert_close(run(adapter, *inputs, eager=eager).double(), expected, rtol=1e-5, atol=1e-5)
    exact = run(adapter.double(), *(x.double() for x in inputs), eager=eager)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_tokens_are_normalized_in_at_least_fp32(given: torch.dtype, computed: torch.dtype):
    memory = (make_inputs()[1] * 50 + 7).to(given)
    found, expected = normalize_tokens(memory), standardize(memory.double())
    tolerance = 1e-12 if computed is torch.float64 else 1e-5
    torch.testing.assert_close(found, expected.to(computed), rtol=tolerance, atol=tolerance)


def test_images_are_normalized_once_for_the_adapters_with_that_option(monkeypatch: pytest.MonkeyPatch):
    memory, calls = make_inputs()[1] * 50 + 7, []
    normed = normalize_tokens(memory)
    monkeypatch.setattr(adapter_ituning, "normalize_tokens", lambda x: calls.append(1) or normalize_tokens(x))
    adapters = {norm: make_adapter(vision_feature_norm=norm > 0) for norm in range(3)}
    for norm, found in project_images(adapters, memory).items():
        expected = adapters[norm].project_visual(normed if norm else memory)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert calls == [1]


def test_zero_keys_give_the_mean_of_the_values():
    adapter = ITuningAdapter(hidden_size=2, vision_hidden_size=2, adapter_hidden_size=2, num_heads=1)
    with torch.no_grad():
        adapter.k_proj.weight.zero_()
        adapter.v_proj.weight.copy_(torch.eye(2))
        adapter.out_proj.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        adapter.out_proj.bias.copy_(torch.tensor([10.0, 20.0]))
    memory = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]])  # mean (3, 5)
    update = run(adapter, torch.randn(1, 2, 2), memory)
    torch.testing.assert_close(update, torch.tensor([[[13.0, 28.0], [13.0, 28.0]]]))


def test_attention_weights_sum_to_one_and_reproduce_the_output():
    adapter, (hidden_states, memory) = make_adapter(), make_inputs()
    key, value = adapter.project_visual(memory)
    assert key.shape == value.shape == (IMAGES, HEADS, TOKENS, HEAD_DIM)  # one copy for each image
    weights = adapter.attention_weights(hidden_states, key)
    assert weights.shape == (IMAGES * ROWS_PER_IMAGE, HEADS, LENGTH, TOKENS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    context = weights @ value.repeat_interleave(ROWS_PER_IMAGE, dim=0)
    update = SCALE * adapter.out_proj(context.transpose(1, 2).flatten(2))
    torch.testing.assert_close(update, adapter(hidden_states, key, value), rtol=1e-5, atol=1e-5)


def test_rows_of_an_image_match_repeated_images():
    adapter, (hidden_states, memory) = make_adapter(), make_inputs()
    repeated = memory.repeat_interleave(ROWS_PER_IMAGE, dim=0)
    torch.testing.assert_close(run(adapter, hidden_states, memory), run(adapter, hidden_states, repeated))
    tiled = memory.repeat(ROWS_PER_IMAGE, 1, 1)
    assert not torch.allclose(run(adapter, hidden_states, memory), run(adapter, hidden_states, tiled))


def test_output_is_zero_initially_and_after_a_reset():
    adapter = ITuningAdapter(hidden_size=97, vision_hidden_size=101, adapter_hidden_size=90, num_heads=9)
    torch.nn.init.ones_(adapter.out_proj.bias)
    adapter.reset_parameters()
    for projection in (adapter.q_proj, adapter.k_proj, adapter.v_proj):
        assert abs(projection.weight.mean().item()) < 1e-3
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not projection.bias.any()
    assert not adapter.out_proj.weight.any()
    assert not adapter.out_proj.bias.any()
    assert not run(adapter, torch.randn(2, 3, 97), torch.randn(2, 5, 101)).any()


def test_dropout_acts_on_the_output_and_only_in_training():
    adapter, inputs = make_adapter(dropout=0.5), make_inputs()
    plain = run(make_adapter(dropout=0.0).train(), *inputs)
    assert torch.equal(run(adapter.eval(), *inputs), plain)
    dropped = run(adapter.train(), *inputs)
    kept = dropped != 0
    assert 0.35 < kept.float().mean().item() < 0.65
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_parameter_count_is_that_of_four_linear_layers():
    count = sum(p.numel() for p in make_adapter().parameters())
    assert count == RANK * (2 * HIDDEN + 2 * VISION_HIDDEN) + 3 * RANK + HIDDEN == 778


@pytest.mark.parametrize("eager", [False, True])
def test_fp32_adapter_with_a_half_precision_decoder(eager: bool):
    adapter, (hidden_states, memory) = make_adapter(), make_inputs()
    expected = run(adapter, hidden_states.bfloat16().float(), memory.bfloat16().float(), eager=eager)
    update = run(adapter, hidden_states.bfloat16(), memory.bfloat16(), eager=eager)
    assert update.dtype is torch.bfloat16
    assert torch.equal(update, expected.bfloat16())  # computed in fp32, rounded once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype):
    adapter, inputs = make_adapter(), make_inputs()
    expected = run(adapter, *inputs)
    update = run(adapter.to(dtype), *(x.to(dtype) for x in inputs))
    torch.testing.assert_close(update.float(), expected, rtol=0.05, atol=0.1)
