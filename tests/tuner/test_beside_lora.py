"""LoRA and I-Tuning on one model: how PEFT combines them, and that both have an effect."""

import copy
from pathlib import Path

import pytest
import torch
from methods import IMAGES, ITUNING, LORA, ROWS, all_families
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import PreTrainedModel

BEAMS = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3}
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is"),
]


def by_injection(text_model: PreTrainedModel) -> PreTrainedModel:
    return inject_adapter_in_model(LORA.config(), text_model, "style")


def by_transformers(text_model: PreTrainedModel) -> PreTrainedModel:
    text_model.add_adapter(LORA.config(), "style")
    return text_model


def by_unwrapping(text_model: PreTrainedModel) -> PreTrainedModel:
    return get_peft_model(text_model, LORA.config(), "style").get_base_model()


@pytest.fixture(params=[by_injection, by_transformers, by_unwrapping])
def with_lora(request, text_model) -> PreTrainedModel:
    """The language model with a LoRA named "style", of random weights."""
    return LORA.perturb(request.param(text_model).eval(), "style", seed=1)


@pytest.fixture
def both(with_lora) -> PeftModel:
    return ITUNING.wrap(with_lora, layers=[2, 3])


@all_families
def test_both_contribute(both, stock):
    everything = ITUNING.logits(both)
    without = {}
    for method, adapter in ((ITUNING, "default"), (LORA, "style")):
        reduced = copy.deepcopy(both)
        for parameter in method.parameters(reduced, adapter).values():
            parameter.data.zero_()
        without[method.name] = ITUNING.logits(reduced)
        assert not torch.allclose(without[method.name], everything, atol=1e-2)
    assert torch.equal(without["lora"], ITUNING.logits(ITUNING.wrap(stock, layers=[2, 3])))


def test_both_are_disabled_and_enabled_together(both, stock):
    everything = ITUNING.logits(both)
    with both.disable_adapter():
        assert torch.equal(ITUNING.logits(both), stock(ROWS).logits)
    assert torch.equal(ITUNING.logits(both), everything)


def test_both_get_gradients_and_inactive_adapters_do_not(with_lora):
    model = ITUNING.wrap(with_lora, layers=[2, 3])
    model.add_adapter("waiting", ITUNING.config())
    model(input_ids=ROWS, labels=ROWS, visual_features=IMAGES).loss.backward()
    expected = set(ITUNING.parameters(model)) | set(LORA.parameters(model, "style"))
    assert {name for name, p in model.named_parameters() if p.grad is not None} == expected


@all_families
def test_generating_with_beams_uses_both(both):
    prompt = {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS), "visual_features": IMAGES}
    texts = both.generate(**prompt, **BEAMS, pad_token_id=0)
    slow = both.get_base_model().generate(**prompt, **BEAMS, pad_token_id=0)  # it projects at each step
    assert torch.equal(texts, slow)


def test_each_is_saved_and_loaded_separately(both, stock, tmp_path: Path):
    expected = ITUNING.logits(both)
    both.save_pretrained(tmp_path / "image", selected_adapters=["default"])
    keys = {f"base_model.model.transformer.h.{i}.{key}" for i in (2, 3) for key in ITUNING.keys}
    assert set(load_file(tmp_path / "image" / "adapter_model.safetensors")) == keys

    lora_alone = both.unload()
    assert list(lora_alone.peft_config) == ["style"]
    weights = get_peft_model_state_dict(lora_alone, adapter_name="style")
    assert set(weights) == {f"transformer.h.{i}.{key}" for i in range(4) for key in LORA.keys}

    fresh = inject_adapter_in_model(LORA.config(), stock, "style")
    assert not set_peft_model_state_dict(fresh, weights, "style").unexpected_keys
    assert torch.equal(fresh(ROWS).logits, lora_alone(ROWS).logits)
    again = PeftModel.from_pretrained(fresh, tmp_path / "image")
    assert torch.equal(ITUNING.logits(again), expected)


# --- What is refused


def test_two_adapters_of_one_name_are_refused(with_lora):
    before, expected = dict(with_lora.peft_config), with_lora(ROWS).logits
    message = r"adapter 'style' of another method \(LoraConfig\): choose another name"
    with pytest.raises(ValueError, match=message):
        get_peft_model(with_lora, ITUNING.config(), "style")
    assert with_lora.peft_config == before
    assert torch.equal(with_lora(ROWS).logits, expected)


def test_a_lora_cannot_be_activated_or_deleted(both):
    expected = ITUNING.logits(both)
    for change in (both.base_model.set_adapter, both.base_model.delete_adapter):
        with pytest.raises(ValueError, match=r"no I-Tuning adapter \['style'\]"):
            change("style")
    assert torch.equal(ITUNING.logits(both), expected)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        both.merge_adapter()


def test_a_peft_model_is_refused(text_model):
    with pytest.raises(ValueError, match=r"get_peft_model\(model\.get_base_model\(\), \.\.\.\)"):
        get_peft_model(LORA.wrap(text_model), ITUNING.config(), "image")
