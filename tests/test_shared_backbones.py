"""Adapters put onto backbones that are in memory already, beside loading everything from its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import ADAPTER, IMAGE_SIZE, make_captioner, randomize_adapters
from transformers import AutoModel, CLIPVisionModel, GPT2LMHeadModel, GPT2Model

from ituning_hf import ITuningForCaptioning


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
def test_it_is_the_captioner_that_is_loaded_whole(saved: Path, in_memory: dict[str, Any], auto_class: type):
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
    with pytest.raises(TypeError, match="text_model is a GPT2Model, expected the GPT2LMHeadModel"):
        ITuningForCaptioning.from_pretrained(saved, text_model=text)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"load_vision_model": False}, "both vision_model and load_vision_model=False"),
        ({"device_map": "cpu"}, "both vision_model and device_map"),
        ({"quantization_config": object()}, "both text_model and quantization_config"),
    ],
)
def test_two_wishes_for_one_backbone_are_refused(saved: Path, in_memory, wish: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ITuningForCaptioning.from_pretrained(saved, **in_memory, **wish)


def test_the_adapters_come_from_the_file_and_nothing_is_drawn(saved: Path, in_memory: dict[str, Any]):
    before = torch.get_rng_state()
    ITuningForCaptioning.from_pretrained(saved, **in_memory)
    assert torch.equal(torch.get_rng_state(), before)
