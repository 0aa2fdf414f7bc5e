"""The behaviours that users of any PEFT method rely on."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from methods import DEPTH, ITUNING, ROWS, all_families
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from small_models import contents
from torch import nn

from ituning_hf.captioner.decoders_ituning import decoder_family

SECOND_TIME = "You are trying to modify a model with PEFT for a second time|Already found a `peft_config`"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def hooks(model: nn.Module) -> list[str]:
    return [
        name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]


# --- The forward pass


@all_families
def test_new_and_disabled_adapters_change_nothing(text_model, stock):
    model, expected = get_peft_model(text_model, ITUNING.config()).eval(), stock(ROWS).logits
    assert torch.equal(ITUNING.logits(model), expected)
    adapted = ITUNING.logits(ITUNING.perturb(model))
    assert ((adapted - expected).abs().amax(-1) > 1e-3).all()  # at every position
    with model.disable_adapter():
        assert torch.equal(ITUNING.logits(model), expected)
        assert torch.equal(model(input_ids=ROWS).logits, expected)  # no image is needed
        with model.disable_adapter():
            assert torch.equal(ITUNING.logits(model), expected)
        assert torch.equal(ITUNING.logits(model), expected)
    assert torch.equal(ITUNING.logits(model), adapted)


# --- On disk


@all_families
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_loads_unchanged(text_model, stock, tmp_path: Path, low_cpu_mem_usage: bool):
    model = ITUNING.wrap(text_model, 2, [1, 3])
    model.save_pretrained(tmp_path / "first")
    assert set(contents(tmp_path / "first")) == FILES
    on_stock = PeftModel.from_pretrained(stock, tmp_path / "first", low_cpu_mem_usage=low_cpu_mem_usage)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "first")
    for loaded in (on_stock, auto):
        assert torch.equal(ITUNING.logits(loaded), ITUNING.logits(model))
        assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
        assert not any(module.training for module in loaded.modules())
    auto.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


def test_the_file_has_exactly_these_keys(text_model, tmp_path: Path):
    ITUNING.wrap(text_model, layers=[-1]).save_pretrained(tmp_path)
    prefix = "base_model.model.transformer.h.3.ituning_adapter."
    keys = [key.removeprefix(prefix) for key in sorted(load_file(tmp_path / "adapter_model.safetensors"))]
    assert keys == [
        *("k_proj.bias", "k_proj.weight", "out_proj.bias", "out_proj.weight"),
        *("q_proj.bias", "q_proj.weight", "v_proj.bias", "v_proj.weight"),
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("ITUNING", "CAUSAL_LM")
    assert (config["adapter_layers"], config["adapter_hidden_size"]) == ([3], 21)


@all_families
def test_adapters_are_injected_without_a_wrapper(text_model, stock):
    injected = inject_adapter_in_model(ITUNING.config(), text_model, "mine")
    assert injected is text_model
    assert torch.equal(ITUNING.logits(injected), stock(ROWS).logits)
    ITUNING.perturb(injected, "mine")
    weights = get_peft_model_state_dict(injected, adapter_name="mine")
    path = decoder_family(stock.config).layers_path
    assert set(weights) == {f"{path}.{i}.{key}" for i in range(DEPTH) for key in ITUNING.keys}
    other = inject_adapter_in_model(ITUNING.config(), stock, "other")
    assert not set_peft_model_state_dict(other, weights, "other").unexpected_keys
    assert torch.equal(ITUNING.logits(other), ITUNING.logits(injected))


@pytest.mark.parametrize("name", ["ituning_b", "adapter-1"])
def test_adapters_are_saved_under_their_names(text_model, stock, tmp_path: Path, name: str):
    model = ITUNING.wrap(text_model, adapter=name)
    model.add_adapter("default", ITUNING.config(2))
    ITUNING.perturb(model, "default", seed=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(stock, tmp_path / name, adapter_name=name)
    loaded.load_adapter(tmp_path, "default")
    for active in (name, "default"):
        model.set_adapter(active)
        loaded.set_adapter(active)
        assert torch.equal(ITUNING.logits(loaded), ITUNING.logits(model))


def test_models_can_be_pickled_and_state_dicts_loaded(text_model, stock, tmp_path: Path):
    model = ITUNING.wrap(text_model)
    pickled, prompt = (
        pickle.loads(pickle.dumps(model)),
        {"inputs": ROWS, "pad_token_id": 0, "max_new_tokens": 3},
    )
    assert torch.equal(ITUNING.logits(pickled), ITUNING.logits(model))
    texts = [each.generate(**prompt, **ITUNING.inputs) for each in (pickled, model)]
    assert torch.equal(*texts)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = get_peft_model(stock, ITUNING.config()).eval()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(ITUNING.logits(again), ITUNING.logits(model))


# --- Training


@all_families
def test_training_changes_the_adapter_and_nothing_else(text_model):
    torch.manual_seed(0)
    model = get_peft_model(text_model, ITUNING.config(layers=[1, 2]))
    own = ITUNING.parameters(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ROWS, labels=ROWS, **ITUNING.inputs).loss
        loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == set(own)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(own)
    assert losses[2] < losses[0]


@pytest.mark.parametrize(("size", "layers"), [(3, None), (2, [0, 3])])
def test_the_number_of_trainable_parameters_is_the_formula(text_model, stock, capsys, size, layers):
    model = get_peft_model(text_model, ITUNING.config(size, layers))
    trainable = ITUNING.per_layer(size) * len(layers or range(DEPTH))
    frozen = sum(p.numel() for p in stock.parameters())
    assert model.get_nb_trainable_parameters() == (trainable, frozen + trainable)
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {trainable:,d} || all params: ")


# --- Repetition and removal


def test_a_second_injection_replaces_the_first(text_model, stock):
    ITUNING.wrap(text_model)
    with pytest.warns(UserWarning, match=SECOND_TIME):
        second = get_peft_model(text_model, ITUNING.config(2, layers=[3])).eval()
    assert torch.equal(ITUNING.logits(second), stock(ROWS).logits)
    assert second.get_nb_trainable_parameters()[0] == ITUNING.per_layer(2)
    assert set(get_peft_model_state_dict(second)) == {
        f"base_model.model.transformer.h.3.{key}" for key in ITUNING.keys
    }


@all_families
def test_unloading_restores_the_stock_model(text_model, stock):
    model = ITUNING.wrap(text_model, layers=[0, 1, 3])
    model.add_adapter("other", ITUNING.config(2, [1, 2]))
    ITUNING.logits(model, output_hidden_states=True)  # hooks of Transformers' own
    stock(ROWS, output_hidden_states=True)
    bare = model.unload()
    assert bare is text_model
    modules = [[(type(m), set(vars(m))) for m in model.modules()] for model in (bare, stock)]
    assert modules[0] == modules[1]
    assert list(bare.state_dict()) == list(stock.state_dict())
    assert hooks(bare) == hooks(stock)
    assert not hasattr(bare, "peft_config")
    assert torch.equal(bare(ROWS).logits, stock(ROWS).logits)
    again = get_peft_model(bare, ITUNING.config()).eval()  # and no warning
    assert torch.equal(ITUNING.logits(again), stock(ROWS).logits)


def test_merging_is_refused(text_model):
    model = ITUNING.wrap(text_model)
    expected = ITUNING.logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="cannot be merged: cross-attention"):
            merge()
    assert torch.equal(ITUNING.logits(model), expected)
    assert not model.supports_lora_conversion()
