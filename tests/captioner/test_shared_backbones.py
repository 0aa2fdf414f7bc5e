"""Adapters loaded over backbones that are already in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from small_models import logits_of, make_batch, make_captioner, randomize_adapters
from transformers import AutoModel, CLIPVisionModel, GPT2LMHeadModel, GPT2Model

from ituning_hf import ITuningForCaptioning, quantize_frozen_weights
from ituning_hf.captioner.decoders_ituning import AdaptedGPT2Block


@pytest.fixture
def saved(saved_captioner: Path) -> Path:
    return saved_captioner


@pytest.fixture
def in_memory(backbones: dict[str, Path]) -> dict[str, Any]:
    return {
        "vision_model": CLIPVisionModel.from_pretrained(backbones["vision"]),
        "text_model": GPT2LMHeadModel.from_pretrained(backbones["text"]),
    }


def storages(model: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for name, p in model.named_parameters() if ".adapter." not in name}


@pytest.mark.parametrize("auto_class", [ITuningForCaptioning, AutoModel])
def test_shared_backbones_give_the_same_captioner(saved: Path, in_memory: dict[str, Any], auto_class: type):
    before = in_memory["text_model"](torch.arange(1, 8)[None]).logits
    random_state = torch.get_rng_state()
    model = auto_class.from_pretrained(saved, **in_memory)
    assert torch.equal(torch.get_rng_state(), random_state)  # nothing is initialized randomly
    assert torch.equal(logits_of(model), logits_of(ITuningForCaptioning.from_pretrained(saved)))
    assert storages(model) == storages(in_memory["vision_model"]) | storages(in_memory["text_model"])
    assert type(in_memory["text_model"].transformer.h[0]).__name__ == "GPT2Block"
    assert torch.equal(in_memory["text_model"](torch.arange(1, 8)[None]).logits, before)


def test_captioners_share_their_backbones(backbones: dict[str, Path], saved: Path, tmp_path: Path):
    other = randomize_adapters(make_captioner(backbones, adapter_layers=[1, 3]), seed=11)
    other.save_pretrained(tmp_path / "other")
    expected = logits_of(ITuningForCaptioning.from_pretrained(saved)), logits_of(other)
    first = ITuningForCaptioning.from_pretrained(saved)
    first.activation_checkpointing_enable()
    shared = {"vision_model": first.vision_model, "text_model": first.text_model}
    second = ITuningForCaptioning.from_pretrained(tmp_path / "other", **shared)
    assert first.text_model.is_gradient_checkpointing
    assert not second.text_model.is_gradient_checkpointing
    assert storages(first) == storages(second)
    assert torch.equal(logits_of(first), expected[0])
    assert torch.equal(logits_of(second), expected[1])
    second.train()
    second(**make_batch()).loss.backward()
    assert all(p.grad is None for p in first.parameters())
    assert not first.training
    assert not any(block.training for block in first.text_model.transformer.h)


def test_backbones_in_another_precision_are_compared_with_their_files(saved: Path, backbones):
    text = GPT2LMHeadModel.from_pretrained(backbones["text"], dtype=torch.bfloat16)
    model = ITuningForCaptioning.from_pretrained(saved, text_model=text)
    assert model.text_model.transformer.wte.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in model.adapter_state_dict().values()} == {torch.float32}
    text.transformer.h[2].ln_1.bias.data[3] = 2
    with pytest.raises(
        ValueError, match=r"text model in memory is not the one at .*h\.2\.ln_1\.bias differs"
    ):
        ITuningForCaptioning.from_pretrained(saved, text_model=text)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_another_backbone_is_refused(saved: Path, in_memory: dict[str, Any], kind: str):
    parameter = dict(in_memory[f"{kind}_model"].named_parameters())
    next(value for name, value in parameter.items() if name.endswith(".bias")).data[0] += 1
    with pytest.raises(ValueError, match=f"The {kind} model in memory is not the one at"):
        ITuningForCaptioning.from_pretrained(saved, **in_memory)


def test_a_model_of_another_class_is_refused(saved: Path, backbones: dict[str, Path]):
    text = GPT2Model.from_pretrained(backbones["text"])
    with pytest.raises(TypeError, match="text_model is a GPT2Model, expected a GPT2LMHeadModel"):
        ITuningForCaptioning.from_pretrained(saved, text_model=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "cpu"}, "both vision_model and device_map"),
        ({"dtype": torch.bfloat16}, "both vision_model and dtype"),
        ({"attn_implementation": "eager"}, "both vision_model and attn_implementation"),
        ({"quantization_config": object()}, "both text_model and quantization_config"),
    ],
)
def test_conflicting_options_are_refused(saved: Path, in_memory, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ITuningForCaptioning.from_pretrained(saved, **in_memory, **options)


def test_a_backbone_of_another_architecture_is_refused(saved: Path, backbones: dict[str, Path]):
    text = GPT2LMHeadModel.from_pretrained(backbones["text"], n_head=11)
    with pytest.raises(ValueError, match="text model has num_attention_heads=11, expected 2"):
        ITuningForCaptioning.from_pretrained(saved, text_model=text)


def test_a_backbone_with_additional_weights_is_refused(saved: Path, in_memory: dict[str, Any]):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    inject_adapter_in_model(lora, in_memory["text_model"], "style")
    with pytest.raises(ValueError, match=r"it has \d+ additional weights \(first: .*lora.*call unload"):
        ITuningForCaptioning.from_pretrained(saved, **in_memory)


def test_offloaded_backbones_are_shared(saved: Path, backbones: dict[str, Path], tmp_path: Path):
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    text = GPT2LMHeadModel.from_pretrained(
        backbones["text"],
        device_map=places | {"transformer.h": "disk", "transformer.drop": "cpu"},
        offload_folder=tmp_path / "offloaded",
    )
    model = ITuningForCaptioning.from_pretrained(saved, text_model=text)
    torch.testing.assert_close(logits_of(model), logits_of(ITuningForCaptioning.from_pretrained(saved)))


def test_quantized_backbones_are_shared(saved: Path):
    first = ITuningForCaptioning.from_pretrained(saved)
    quantize_frozen_weights(first)
    second = ITuningForCaptioning.from_pretrained(saved, text_model=first.text_model)
    assert torch.equal(logits_of(second), logits_of(first))


def test_adapted_layers_of_remote_code_are_replaced(remote_class, backbones, saved: Path, tmp_path: Path):
    make_captioner(backbones, adapter_layers=[0, 1]).save_pretrained(tmp_path / "two")
    foreign = remote_class.from_pretrained(saved)
    assert not any(isinstance(block, AdaptedGPT2Block) for block in foreign.text_model.transformer.h)
    model = ITuningForCaptioning.from_pretrained(tmp_path / "two", text_model=foreign.text_model)
    assert torch.equal(logits_of(model), logits_of(ITuningForCaptioning.from_pretrained(tmp_path / "two")))
