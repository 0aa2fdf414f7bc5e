"""Forward and backward passes: rows, precision, activation checkpointing, recorded hidden states."""

import copy
from pathlib import Path

import pytest
import torch
from methods import DEPTH, IMAGES, ITUNING, ROWS, all_families, layers_of
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from ituning_hf.captioner.adapter_ituning import ITuningAdapter

# --- Rows and attention


def test_embeddings_count_as_rows(text_model):
    model = ITUNING.wrap(text_model)
    embedded = text_model.transformer.wte(ROWS)
    found = model(inputs_embeds=embedded, visual_features=IMAGES).logits
    assert torch.allclose(found, ITUNING.logits(model), atol=1e-5)


def test_eager_attention_reaches_the_adapters(text_model, monkeypatch):
    calls = []
    attention = ITuningAdapter._attention

    def counted(self, query, key):
        calls.append(len(key))
        return attention(self, query, key)

    monkeypatch.setattr(ITuningAdapter, "_attention", counted)
    model = ITUNING.wrap(text_model)
    fused = ITUNING.logits(model)
    assert calls == []
    text_model.set_attn_implementation("eager")
    assert torch.allclose(ITUNING.logits(model), fused, atol=1e-5)
    assert calls == [2] * DEPTH


@pytest.mark.parametrize("loaded", ["gpt2", "gemma3_text"], indirect=True)
def test_it_compiles_without_graph_breaks(text_model):
    model = ITUNING.wrap(text_model, layers=[-1])
    expected = ITUNING.logits(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(ITUNING.logits(compiled), expected)


# --- Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_adapters_are_in_fp32_or_in_the_models_precision(text_model, dtype, autocast_adapter_dtype, tmp_path):
    text_model.to(dtype)
    model = get_peft_model(text_model, ITUNING.config(), autocast_adapter_dtype=autocast_adapter_dtype).eval()
    expected = {torch.float32 if autocast_adapter_dtype else dtype}
    assert {p.dtype for p in ITUNING.parameters(model).values()} == expected
    assert torch.equal(ITUNING.logits(model), ITUNING.logits(copy.deepcopy(text_model)))
    ITUNING.perturb(model)
    logits = ITUNING.logits(model)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    model(input_ids=ROWS, labels=ROWS, **ITUNING.inputs).loss.backward()
    assert all(p.grad.dtype in expected for p in ITUNING.parameters(model).values())

    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(
            GPT2LMHeadModel.from_pretrained(text_model.name_or_path, dtype=dtype),
            tmp_path,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
        )
        assert {p.dtype for p in ITUNING.parameters(loaded).values()} == expected
        assert torch.equal(ITUNING.logits(loaded), logits)


@all_families
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_adapters_on_a_quantized_language_model(text_model, tmp_path: Path):
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    expected = ITUNING.logits(ITUNING.wrap(copy.deepcopy(text_model)))
    quantized = AutoModelForCausalLM.from_pretrained(
        text_model.name_or_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    model = ITUNING.wrap(quantized)
    assert any(isinstance(m, bnb.nn.Linear8bitLt) for m in model.modules())
    assert {p.dtype for p in ITUNING.parameters(model).values()} == {torch.float32}
    assert 0 < (ITUNING.logits(model) - expected).abs().max() < 0.3 * expected.abs().max()
    model(input_ids=ROWS, labels=ROWS, **ITUNING.inputs).loss.backward()
    assert all(p.grad.any() for name, p in ITUNING.parameters(model).items() if name.endswith("weight"))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(text_model, tmp_path)
    assert torch.allclose(ITUNING.logits(again), expected, atol=1e-5)


def test_the_hooks_of_a_device_map_run_on_the_adapted_layer(text_model):
    hooks = pytest.importorskip("accelerate.hooks")
    seen = []

    class Record(hooks.AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    hooks.add_hook_to_module(text_model.transformer.h[2], Record(execution_device="cpu"))
    model = ITUNING.wrap(text_model)
    ITUNING.logits(model)
    model.unload()(ROWS)
    assert seen == ["TunedGPT2Block", "GPT2Block"]


# --- Training


@all_families
@pytest.mark.parametrize(("enabled", "use_reentrant"), [("before", False), ("after", True)])
def test_recomputed_activations_give_the_same_gradients(text_model, stock, enabled, use_reentrant):
    def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
        calls = []
        for layer in layers_of(model.get_base_model()):
            norm = layer.family.ffn_norm(layer.base_layer)
            norm.register_forward_hook(lambda *_: calls.append(1))
        model(input_ids=ROWS, labels=ROWS, **ITUNING.inputs).loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return grads | {"calls": torch.tensor(len(calls))}

    def train(model: nn.Module) -> nn.Module:
        for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        return model.train()

    settings = {"use_reentrant": use_reentrant}
    if enabled == "before":
        text_model.activation_checkpointing_enable(settings)
    model = train(ITUNING.wrap(text_model))
    if enabled == "after":
        model.activation_checkpointing_enable(settings)
        model.enable_input_require_grads()
    found, expected = gradients(model), gradients(train(ITUNING.wrap(stock)))
    assert (found.pop("calls"), expected.pop("calls")) == (2 * DEPTH, DEPTH)
    assert set(found) == set(expected) == set(ITUNING.parameters(model))
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert all(grad.any() for name, grad in expected.items() if not name.endswith("k_proj.bias"))


def test_dropout_is_active_only_in_training(text_model):
    for dropout in (m for m in text_model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    model = ITUNING.wrap(text_model, adapter_dropout=0.5)
    expected = ITUNING.logits(model)
    assert torch.equal(ITUNING.logits(model), expected)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(ITUNING.logits(model), expected)
    assert torch.equal(ITUNING.logits(model.eval()), expected)
    assert not any(module.training for module in model.modules())


# --- Hidden states and attentions


def captured(model: nn.Module, image: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        output = model(input_ids=ROWS, **wanted, **({} if image is None else {"visual_features": image}))
    return (*output.hidden_states, *output.attentions)


@all_families
@pytest.mark.parametrize("asked_before", [False, True])
def test_hidden_states_and_attentions_are_captured(text_model, stock, asked_before: bool):
    for model in (text_model, stock):
        model.set_attn_implementation("eager")
    expected = captured(stock, None)
    if asked_before:
        captured(text_model, None)
    model = get_peft_model(text_model, ITUNING.config(layers=[1, 2])).eval()
    assert len(expected) == DEPTH + 1 + DEPTH
    for a, b in zip(captured(model, IMAGES), expected, strict=True):
        assert torch.equal(a, b)
    ITUNING.perturb(model)
    states = captured(model, IMAGES)
    equal = [torch.equal(a, b) for a, b in zip(states[: DEPTH + 1], expected, strict=False)]
    assert equal == [True, True, False, False, False]
    assert torch.allclose(text_model.lm_head(states[DEPTH]), ITUNING.logits(model), atol=1e-6)
    for a, b in zip(captured(model.unload(), None), expected, strict=True):
        assert torch.equal(a, b)
