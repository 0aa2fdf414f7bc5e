"""Adapters loaded over backbones that are already in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from small_models import ADAPTER, IMAGE_SIZE, make_captioner, randomize_adapters
from transformers import AutoModel, CLIPVisionModel, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from ituning_hf import ITuningForCaptioning, quantize_frozen_weights
from ituning_hf.captioner.decoders_ituning import ITuningGPT2Block


@pytest.fixture
def saved(backbones: dict[str, Path], tmp_path: Path) -> Path:
    make_captioner(backbones, **ADAPTER).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def in_memory(backbones: dict[str, Path]) -> dict[str, Any]:
    return {
        "vision_model": CLIPVisionModel.from_pretrained(backbones["vision"]),
        "text_model": GPT2LMHeadModel.from_pretrained(backbones["text"]),
    }


def logits(model: ITuningForCaptioning) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    ids = torch.randint(1, 300, (4, 7), generator=generator)
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=ids).logits


def storages(model: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for name, p in model.named_parameters() if ".adapter." not in name}


@pytest.mark.parametrize("auto_class", [ITuningForCaptioning, AutoModel])
def test_shared_backbones_give_the_same_captioner(saved: Path, in_memory: dict[str, Any], auto_class: type):
    before = in_memory["text_model"](torch.arange(1, 8)[None]).logits
    model = auto_class.from_pretrained(saved, **in_memory)
    assert torch.equal(logits(model), logits(ITuningForCaptioning.from_pretrained(saved)))
    assert storages(model) == storages(in_memory["vision_model"]) | storages(in_memory["text_model"])
    assert type(in_memory["text_model"].transformer.h[0]).__name__ == "GPT2Block"
    assert torch.equal(in_memory["text_model"](torch.arange(1, 8)[None]).logits, before)


def test_captioners_share_their_backbones(backbones: dict[str, Path], saved: Path, tmp_path: Path):
    other = randomize_adapters(make_captioner(backbones, adapter_layers=[1, 3]), seed=11)
    other.save_pretrained(tmp_path / "other")
    expected = logits(ITuningForCaptioning.from_pretrained(saved)), logits(other)
    first = ITuningForCaptioning.from_pretrained(saved)
    shared = {"vision_model": first.vision_model, "text_model": first.text_model}
    second = ITuningForCaptioning.from_pretrained(tmp_path / "other", **shared)
    assert storages(first) == storages(second)
    assert torch.equal(logits(first), expected[0])
    assert torch.equal(logits(second), expected[1])
    second.train()
    loss = second(
        visual_features=torch.randn(1, 10, 15), input_ids=(ids := torch.ones(2, 4).long()), labels=ids
    )
    loss.loss.backward()
    assert all(p.grad is None for p in first.parameters())
    assert not first.training
    assert not any(block.training for block in first.text_model.transformer.h)


def test_backbones_in_another_precision_are_compared_with_those_on_disk(saved: Path, backbones):
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
        ({"load_vision_model": False}, "both vision_model and load_vision_model=False"),
        ({"device_map": "cpu"}, "both vision_model and device_map"),
        ({"dtype": torch.bfloat16}, "both vision_model and dtype"),
        ({"attn_implementation": "eager"}, "both vision_model and attn_implementation"),
        ({"quantization_config": object()}, "both text_model and quantization_config"),
    ],
)
def test_conflicting_options_are_refused(saved: Path, in_memory, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ITuningForCaptioning.from_pretrained(saved, **in_memory, **options)


def test_the_adapters_come_from_the_file_and_nothing_is_drawn(saved: Path, in_memory: dict[str, Any]):
    before = torch.get_rng_state()
    ITuningForCaptioning.from_pretrained(saved, **in_memory)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_of_another_architecture_is_refused(saved: Path, backbones: dict[str, Path]):
    text = GPT2LMHeadModel.from_pretrained(backbones["text"], n_head=11)
    with pytest.raises(ValueError, match="text model has num_attention_heads=11, expected 2"):
        ITuningForCaptioning.from_pretrained(saved, text_model=text)


def test_a_backbone_with_something_added_is_refused(saved: Path, in_memory: dict[str, Any]):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    inject_adapter_in_model(lora, in_memory["text_model"], "style")
    with pytest.raises(ValueError, match=r"it has \d+ more weights \(first: .*lora.*such as a LoRA"):
        ITuningForCaptioning.from_pretrained(saved, **in_memory)


def test_offloaded_backbones_are_compared_with_those_on_disk(
    saved: Path, backbones: dict[str, Path], tmp_path: Path
):
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    text = GPT2LMHeadModel.from_pretrained(
        backbones["text"],
        device_map=places | {"transformer.h": "disk", "transformer.drop": "cpu"},
        offload_folder=tmp_path / "offloaded",
    )
    model = ITuningForCaptioning.from_pretrained(saved, text_model=text)
    torch.testing.assert_close(logits(model), logits(ITuningForCaptioning.from_pretrained(saved)))


def test_quantised_backbones_are_shared(saved: Path):
    first = ITuningForCaptioning.from_pretrained(saved)
    quantize_frozen_weights(first)
    second = ITuningForCaptioning.from_pretrained(saved, text_model=first.text_model)
    assert torch.equal(logits(second), logits(first))


def test_blocks_of_another_repositorys_copy_are_taken_off(backbones: dict[str, Path], saved: Path, tmp_path):
    make_captioner(backbones, adapter_layers=[0, 1]).save_pretrained(tmp_path / "two")
    foreign = AutoModel.from_pretrained(saved, trust_remote_code=True)
    for block in foreign.text_model.transformer.h:
        block.__class__ = type("ITuningGPT2Block", (GPT2Block,), dict(vars(ITuningGPT2Block)))
    model = ITuningForCaptioning.from_pretrained(tmp_path / "two", text_model=foreign.text_model)
    assert torch.equal(logits(model), logits(ITuningForCaptioning.from_pretrained(tmp_path / "two")))


def test_gradient_checkpointing_is_not_inherited(saved: Path):
    first = ITuningForCaptioning.from_pretrained(saved)
    first.activation_checkpointing_enable()
    second = ITuningForCaptioning.from_pretrained(saved, text_model=first.text_model)
    assert not second.is_gradient_checkpointing
    assert first.is_gradient_checkpointing
