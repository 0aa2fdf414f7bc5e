"""The captioner's forward and backward pass, compared with stock GPT-2; see also `test_reference.py`."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_families import DECODERS
from small_models import ADAPTER, TEXT, VISION, make_batch, make_captioner, randomize_adapters
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2LMHeadModel
from transformers.loss.loss_utils import ForCausalLMLoss

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.configuration_ituning import CaptionerError

IMAGES, ROWS, LENGTH, VOCABULARY = 3, 5, 8, 300
PARTS = [f"{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")]


@pytest.fixture
def language_model(backbones: dict[str, Path]) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(backbones["text"])


def gradients(model: ITuningForCaptioning, **batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- What is trained


def test_only_the_adapters_of_the_named_layers_are_trainable(backbones: dict[str, Path], language_model):
    model = make_captioner(backbones, adapter_layers=[1, -1])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"text_model.transformer.h.{i}.adapter.{part}" for i in (1, 3) for part in PARTS}
    assert set(model.adapter_state_dict()) == trainable
    found = {name for name in model.state_dict() if name.startswith("text_model.")}
    assert found == trainable | {f"text_model.{name}" for name in language_model.state_dict()}
    assert sorted(model.adapters()) == [1, 3]


def test_training_changes_every_adapter_and_not_one_bit_of_the_backbones(captioner):
    def snapshot() -> dict[str, torch.Tensor]:
        tensors = itertools.chain(captioner.named_parameters(), captioner.named_buffers())
        return {name: tensor.detach().clone() for name, tensor in tensors}

    before = snapshot()
    captioner.train()
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=0.01, weight_decay=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        captioner(**make_batch(seed=seed)).loss.backward()
        optimizer.step()
    after = snapshot()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"text_model.transformer.h.{i}.adapter.{part}" for i in range(4) for part in PARTS}


def test_in_training_adapters_have_dropout_and_backbones_do_not(backbones, language_model):
    model, batch = make_captioner(backbones, adapter_dropout=0.3), make_batch()
    assert model.config.text_config.resid_pdrop == 0.1
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    evaluated = model(**batch).loss
    model.train()
    assert model(**batch).loss != model(**batch).loss
    for adapter in model.adapters().values():
        adapter.dropout.p = 0.0
    trained = model(**batch).loss
    assert torch.equal(model(**batch).loss, trained)
    torch.testing.assert_close(trained, evaluated)
    text = {name: batch[name] for name in ("input_ids", "labels")}
    language_model.train()
    assert language_model(**text).loss != language_model(**text).loss  # the stock model has dropout


# --- The loss


@pytest.mark.parametrize("num_items_in_batch", [None, 97, torch.tensor(97)])
def test_loss_is_transformers_causal_loss(captioner, num_items_in_batch):
    batch = make_batch()
    output = captioner(**batch, num_items_in_batch=num_items_in_batch, logits_to_keep=LENGTH)
    expected = ForCausalLMLoss(
        output.logits, batch["labels"], VOCABULARY, num_items_in_batch=num_items_in_batch
    )
    torch.testing.assert_close(output.loss, expected)


def test_training_gives_the_loss_alone_and_evaluation_also_logits(captioner):
    batch = make_batch()
    assert list(captioner.train()(**batch).keys()) == ["loss"]
    assert list(captioner.eval()(**batch, skip_logits=True).keys()) == ["loss"]
    output = captioner(**batch)
    assert list(output.keys()) == ["loss", "logits"]
    assert torch.equal(output.logits, captioner(**batch | {"labels": None}).logits)


@pytest.mark.parametrize("logits_to_keep", [1, 3, torch.tensor([0, 5])])
def test_logits_to_keep_selects_positions(captioner, logits_to_keep):
    batch = make_batch()
    kept = captioner(**batch, logits_to_keep=logits_to_keep).logits
    del batch["labels"]
    everything = captioner(**batch).logits
    positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    torch.testing.assert_close(kept, everything[:, positions])


# --- Images and rows


def test_features_replace_pixels(captioner, backbones: dict[str, Path]):
    batch = make_batch()
    pixels = batch.pop("pixel_values")
    encoder = CLIPVisionModel.from_pretrained(backbones["vision"])
    features = encoder(pixels).last_hidden_state.detach()
    assert torch.equal(captioner.get_image_features(pixels), features)
    expected = captioner(pixel_values=pixels, **batch).loss
    assert torch.equal(captioner(visual_features=features, **batch).loss, expected)
    projected = captioner.project_visual(features)
    assert torch.equal(captioner(visual_key_values=projected, **batch).loss, expected)


# --- Precision, attention implementations, compilation


def test_fp32_adapter_with_half_precision_backbones(backbones: dict[str, Path]):
    model = make_captioner(backbones, dtype="bfloat16")
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert {d for n, d in dtypes.items() if ".adapter." in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if ".adapter." not in n} == {torch.bfloat16}
    batch = make_batch()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert {g.dtype for g in gradients(model, **batch).values()} == {torch.float32}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains_under_bf16_autocast(captioner, checkpointing: bool):
    batch = make_batch()
    expected = gradients(captioner.train(), **batch)
    if checkpointing:
        captioner.activation_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        loss = captioner(**batch).loss
    captioner.zero_grad()
    loss.backward()
    for name, p in captioner.named_parameters():
        if p.requires_grad and "k_proj.bias" not in name:  # whose exact gradient is zero
            assert p.grad.dtype is torch.float32
            assert F.cosine_similarity(p.grad.flatten(), expected[name].flatten(), dim=0) > 0.95, name


def test_gradient_checkpointing_keeps_adapter_dropout(backbones: dict[str, Path]):
    model, batch = make_captioner(backbones, adapter_dropout=0.4).train(), make_batch()
    torch.manual_seed(0)
    expected = gradients(model, **batch)
    model.activation_checkpointing_enable()
    torch.manual_seed(0)
    torch.testing.assert_close(gradients(model, **batch), expected, rtol=0, atol=0)


def test_reentrant_checkpointing_is_refused(captioner):
    with pytest.raises(
        ValueError, match=r"use_reentrant=True gives .* no gradient: pass use_reentrant=False"
    ):
        captioner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_generation_is_the_same_in_training_mode(captioner, checkpointing: bool):
    pixels = make_batch()["pixel_values"]
    expected = captioner.generate(pixel_values=pixels, max_new_tokens=6)
    if checkpointing:
        captioner.activation_checkpointing_enable()
    captioner.train()
    assert torch.equal(captioner.generate(pixel_values=pixels, max_new_tokens=6), expected)


SHALLOW = {
    "gpt2": {"n_layer": 2},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(params=["gpt2", pytest.param("gemma3", marks=pytest.mark.slow)])
def shallow_captioner(request: pytest.FixtureRequest) -> ITuningForCaptioning:
    """A captioner of two adapted layers: compiling takes about as long for each layer."""
    torch.compiler.reset()
    _, _, config_class, fields = DECODERS[request.param]
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 299, "eos_token_id": 299}
    config = ITuningConfig(
        vision_config=CLIPVisionConfig(**VISION | {"num_hidden_layers": 1}),
        text_config=config_class(**fields | tokens | SHALLOW[request.param]),
        **ADAPTER,
    )
    return randomize_adapters(ITuningForCaptioning(config)).eval()


def test_evaluation_compiles_without_graph_breaks(shallow_captioner):
    batch = make_batch(k=2)
    arguments = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    found = torch.compile(shallow_captioner, fullgraph=True, backend="eager")(*arguments).logits
    torch.testing.assert_close(found, shallow_captioner(*arguments).logits, rtol=1e-5, atol=1e-5)


def test_training_compiles_without_graph_breaks(shallow_captioner):
    batch = make_batch(k=2)
    batch["visual_features"] = shallow_captioner.get_image_features(batch.pop("pixel_values"))
    batch["label_weights"] = torch.randn(batch["labels"].shape)
    expected = gradients(shallow_captioner.train(), **batch, label_smoothing=0.1)
    compiled = torch.compile(shallow_captioner, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, **batch, label_smoothing=0.1)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# --- Outputs


def test_hidden_states_and_attentions_are_recorded(backbones: dict[str, Path]):
    model = make_captioner(backbones, attn_implementation="eager", adapter_layers=[1])
    for p in model.adapters()[1].parameters():
        torch.nn.init.zeros_(p)
    language_model = GPT2LMHeadModel.from_pretrained(backbones["text"], attn_implementation="eager")
    batch = make_batch(k=2)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    found = model(batch["pixel_values"], batch["input_ids"], **wanted)
    expected = language_model(batch["input_ids"], **wanted)
    assert len(found.hidden_states) == TEXT["n_layer"] + 1
    assert len(found.attentions) == TEXT["n_layer"]
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert torch.equal(ours, theirs)


def test_visual_attention_has_the_weights_of_each_adapter(backbones: dict[str, Path]):
    model = make_captioner(backbones, adapter_layers=[0, 3])
    batch = make_batch()
    attention = model.visual_attention(batch["input_ids"], batch["pixel_values"])
    heads, tokens = ADAPTER["adapter_num_heads"], 10
    assert attention.shape == (IMAGES * ROWS, 2, heads, LENGTH, tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    features = model.get_image_features(batch["pixel_values"])
    assert torch.equal(model.visual_attention(batch["input_ids"], visual_features=features), attention)


# --- Bad input

BAD_INPUT = [
    ({"pixel_values": None}, "Got neither of pixel_values and visual_features"),
    ({"visual_features": torch.zeros(3, 10, 15)}, "Got both of pixel_values and visual_features"),
    (
        {"pixel_values": None, "visual_features": torch.zeros(3, 10, 16)},
        r"visual_features has shape \(3, 10, 16\), expected \(num_images, tokens, 15\)",
    ),
    ({"pixel_values": None, "visual_features": torch.zeros(10, 15)}, r"visual_features has shape \(10, 15\)"),
    ({"pixel_values": torch.zeros(3, 3, 32, 32)}, r"pixel_values has shape \(3, 3, 32, 32\)"),
    ({"pixel_values": torch.zeros(2, 3, 30, 30)}, "input_ids has 15 rows for 2 images: .* image-major"),
    (
        {"pixel_values": None, "visual_features": torch.zeros(0, 10, 15)},
        "input_ids has 15 rows for 0 images",
    ),
    ({"input_ids": None}, r"input_ids is None.*call generate"),
    ({"input_ids": torch.ones(15)}, r"input_ids has shape \(15,\), expected \(rows, tokens\)"),
    ({"input_ids": torch.ones(15, 49)}, "input_ids has rows of 49 tokens, expected at most 48"),
    ({"input_ids": torch.full((15, 8), 300)}, "input_ids contains 300, expected at most 299"),
    ({"attention_mask": torch.ones(1, 8)}, "attention_mask has 1 rows, expected 15"),
    ({"labels": torch.zeros(15, 7)}, r"labels has shape \(15, 7\), expected .* \(15, 8\)"),
    ({"labels": None, "num_items_in_batch": 7}, "num_items_in_batch without labels"),
    ({"inputs_embeds": torch.zeros(15, 8, 22)}, "inputs_embeds is not supported"),
    ({"visual_key_values": {}}, "visual_key_values replaces pixel_values and visual_features"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_INPUT)
def test_invalid_inputs_are_refused(captioner, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        captioner(**make_batch() | changes)


def test_a_cache_is_refused_in_training_mode(captioner, pixel_values):
    ids = torch.tensor([[1, 2, 3]] * 3)
    past = captioner(pixel_values=pixel_values, input_ids=ids, use_cache=True).past_key_values
    captioner.train()
    with pytest.raises(ValueError, match="A cache cannot be continued in training mode"):
        captioner(pixel_values=pixel_values, input_ids=ids, past_key_values=past)


# --- The vocabulary


def test_the_vocabulary_cannot_be_resized(captioner):
    size = captioner.config.text_config.vocab_size
    for unchanged in ({}, {"new_num_tokens": size}, {"pad_to_multiple_of": 100}):
        assert captioner.resize_token_embeddings(**unchanged) is captioner.get_input_embeddings()
    for changed in ({"new_num_tokens": size + 1}, {"new_num_tokens": size, "pad_to_multiple_of": 64}):
        with pytest.raises(CaptionerError, match=r"has 300 tokens.*use the EOS token.*resize and save"):
            captioner.resize_token_embeddings(**changed)
    assert captioner.get_input_embeddings().weight.shape[0] == size
