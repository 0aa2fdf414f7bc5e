"""The language model in int8: its products and gradients, what is not quantised, where it is refused."""

import os
from pathlib import Path

import pytest
import torch
from fresh_process import run_fresh
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ituning_hf import ITuningForCaptioning, load_captioner, quantize_frozen_weights, save_captioner
from ituning_hf.inference import int8
from ituning_hf.inference.int8 import Int8Linear
from ituning_hf.tuner.conversion import to_peft

# Three rows of weights whose largest values are 127 steps, so that the integers can be read off.
WEIGHT = torch.tensor([[127.0, -3.0], [0.5, 63.5], [0.0, 0.0]])
INTEGERS = torch.tensor([[127, -3], [1, 127], [0, 0]], dtype=torch.int8)
ROWS = torch.arange(1, 19).view(6, 3)


@pytest.fixture
def quantised(captioner: ITuningForCaptioning) -> ITuningForCaptioning:
    quantize_frozen_weights(captioner)
    return captioner


@pytest.fixture
def eight_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8, "largest_weight", lambda: 127)


@pytest.mark.usefixtures("eight_bits")
def test_rows_of_weights_become_integers_and_a_scale():
    layer = Int8Linear(WEIGHT, bias=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(layer.integers, INTEGERS)
    assert layer.scale[:2].tolist() == [1.0, 0.5]
    # Both rows of x are whole steps of their own scales: nothing is rounded, and a row of zeros stays one.
    x = torch.tensor([[[127.0, 2.0], [0.0, -254.0], [0.0, 0.0]]])
    expected = F.linear(x, INTEGERS.float() * layer.scale[:, None], layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert Int8Linear(WEIGHT, bias=None)(x)[0, 2].tolist() == [0.0, 0.0, 0.0]


def test_the_product_is_close_and_keeps_shape_and_dtype():
    linear = nn.Linear(61, 37)
    layer = Int8Linear(linear.weight, linear.bias)
    x = torch.randn(2, 5, 61, generator=torch.Generator().manual_seed(1))
    expected = linear(x)
    assert 0 < (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()
    assert layer(x.bfloat16()).dtype is torch.bfloat16
    assert layer(x).shape == (2, 5, 37)


@pytest.mark.usefixtures("eight_bits")
def test_the_gradient_is_that_of_the_quantised_weights():
    layer = Int8Linear(WEIGHT, bias=None)
    x = torch.randn(5, 2, requires_grad=True)
    coefficients = torch.randn(5, 3)
    (layer(x) * coefficients).sum().backward()
    torch.testing.assert_close(x.grad, coefficients @ (INTEGERS.float() * layer.scale[:, None]))
    assert not list(layer.parameters())


@pytest.mark.parametrize("size", [16, 64, 65, 768])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_integer_products_of_extreme_values_are_exact(rows: int, size: int):
    signs = torch.tensor([[1] * size, [-1] * size, [1, -1] * (size // 2) + [1] * (size % 2)])
    x, weights = 127 * signs.repeat(rows, 1), int8.largest_weight() * signs.repeat(5, 1)
    found = torch._int_mm(x.to(torch.int8), weights.to(torch.int8).t())
    assert torch.equal(found.long(), x @ weights.t())


WITHOUT_VNNI = """
import json
import torch
from ituning_hf.inference.int8 import largest_weight
x, weights = torch.full((3, 768), 127), torch.full((5, 768), largest_weight())
product = torch._int_mm(x.to(torch.int8), weights.to(torch.int8).t())
found = {"largest": largest_weight(), "exact": torch.equal(product.long(), x @ weights.t())}
"""


def test_without_vnni_the_width_of_the_weights_keeps_products_exact(tmp_path: Path):
    """oneDNN on x86 reads the variable once in a process. Other CPUs and libraries ignore it."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    found = run_fresh(WITHOUT_VNNI, tmp_path, hide=False, environment=environment)
    assert found["exact"]
    assert found["largest"] in (64, 127)


def test_large_values_of_one_sign_do_not_saturate():
    """GPT-2 has such outliers in a few columns."""
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 9), torch.randn(5, 64)
    x[:, :4], linear.weight.data[:, :4] = 20, 1
    torch.testing.assert_close(Int8Linear(linear.weight, linear.bias)(x), linear(x), rtol=0.02, atol=0)


def test_every_frozen_matrix_and_nothing_else_is_quantised(captioner, processor):
    before = {name: p.clone() for name, p in captioner.named_parameters()}
    matrices = {
        name
        for name, module in captioner.text_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and ".adapter." not in name
    }
    quantize_frozen_weights(captioner)
    text = captioner.text_model
    assert {name for name, module in text.named_modules() if isinstance(module, Int8Linear)} == matrices
    assert len(matrices) == 4 * 4 + 1  # of each layer four, and the output layer
    after = dict(captioner.named_parameters())
    assert set(before) - set(after) == {f"text_model.{name}.weight" for name in matrices - {"lm_head"}}
    assert all(torch.equal(p, before[name]) for name, p in after.items())
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert {name for name, p in after.items() if p.requires_grad} == set(captioner.adapter_state_dict())
    quantize_frozen_weights(captioner)  # there is nothing left to do
    assert set(dict(captioner.named_parameters())) == set(after)


def test_logits_and_the_adapters_gradients_stay_close(captioner, backbones, pixel_values):
    results = []
    for _ in range(2):
        captioner.zero_grad()
        out = captioner.train()(pixel_values, ROWS, labels=ROWS, logits_to_keep=3)
        out.loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in captioner.parameters() if p.requires_grad])
        results.append((out.logits.detach(), gradient.clone()))
        quantize_frozen_weights(captioner)
    (logits, gradient), (found, found_gradient) = results
    assert 0 < (found - logits).abs().max() < 0.05 * logits.abs().max()
    assert 0.99 < F.cosine_similarity(found_gradient, gradient, dim=0) < 1


def test_recomputed_activations_give_the_same_gradients(quantised, pixel_values):
    gradients = []
    for _ in range(2):
        quantised.zero_grad()
        quantised.train()(pixel_values, ROWS, labels=ROWS).loss.backward()
        gradients.append([p.grad.clone() for p in quantised.parameters() if p.requires_grad])
        quantised.activation_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_cached_steps_agree_with_whole_sequences(quantised, pixel_values):
    ids = quantised.generate(pixel_values=pixel_values, num_beams=1, max_new_tokens=9, eos_token_id=-1)
    scores = quantised(pixel_values, ids[:, :-1]).logits
    assert torch.equal(scores.argmax(dim=-1), ids[:, 1:])


def test_quantisation_does_not_change_the_saved_files(captioner, processor, pixel_values, tmp_path: Path):
    expected = captioner(pixel_values, ROWS).logits
    save_captioner(captioner, processor, tmp_path / "before")
    quantize_frozen_weights(captioner)
    found = captioner(pixel_values, ROWS).logits
    save_captioner(captioner, processor, tmp_path / "after")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "after" / file).read_bytes()
    loaded, _ = load_captioner(tmp_path / "after", device="cpu")
    assert torch.equal(loaded(pixel_values, ROWS).logits, expected)
    loaded, _ = load_captioner(tmp_path / "after", device="cpu", quantization="int8")
    assert torch.equal(loaded(pixel_values, ROWS).logits, found)


def test_conversion_to_peft_and_back_keeps_the_quantised_weights(quantised, pixel_values):
    peft_model = to_peft(quantised)
    features = quantised.get_image_features(pixel_values)
    expected = quantised(visual_features=features, input_ids=ROWS).logits
    found = peft_model(input_ids=ROWS, visual_features=features.repeat_interleave(2, 0)).logits
    # Another order of summation can change to which integer an input is rounded.
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    back = ITuningForCaptioning.from_peft(peft_model, quantised.vision_model)
    assert torch.equal(back(visual_features=features, input_ids=ROWS).logits, expected)


def test_other_devices_and_other_precisions_are_refused(captioner, processor, tmp_path: Path):
    save_captioner(captioner, processor, tmp_path)
    with pytest.raises(ValueError, match=r"int8 is for the CPU, and this is 'meta'"):
        load_captioner(tmp_path / "absent", device="meta", quantization="int8")
    with pytest.raises(ValueError, match=r"int8 is for the CPU, and this is 'meta'"):
        quantize_frozen_weights(captioner.to("meta"))
    with pytest.raises(ValueError, match=r"quantization is 'int3', expected 'int8' or None"):
        load_captioner(tmp_path, device="cpu", quantization="int3")
