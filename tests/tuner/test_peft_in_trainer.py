"""PEFT models in `transformers.Trainer`: the tuner, the tuner beside a LoRA, and a LoRA over a captioner."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import DEPTH, ITUNING, LORA, VISION_WIDTH
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import logits_of, make_batch, make_captioner
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2LMHeadModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from ituning_hf import ITuningForCaptioning

BATCH = make_batch(k=2)
TEXT = {name: tensor for name, tensor in BATCH.items() if name != "pixel_values"}
FEATURES = torch.randn(3, 10, VISION_WIDTH, generator=torch.Generator().manual_seed(3))
PIXELS = {"pixel_values": BATCH["pixel_values"]}
BEAMS = {"num_beams": 3, "max_new_tokens": 9, "min_new_tokens": 5}
TWO_METHODS = [
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model"),
]
# PEFT 0.21 reads a name that Transformers has changed; it sets fan_in_fan_out itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]


def inputs_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """The images, as the model takes them."""
    is_captioner = isinstance(model.get_base_model(), ITuningForCaptioning)
    return PIXELS if is_captioner else {"visual_features": FEATURES}


def make_trainer(model: PeftModel, folder: Path, steps: int = 2, **options: Any) -> Seq2SeqTrainer:
    """A trainer whose every batch is the same."""
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.1,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no"} | options,
    )
    batch = TEXT | inputs_of(model)
    return Seq2SeqTrainer(
        model, arguments, lambda _: dict(batch), train_dataset=range(8), eval_dataset=range(8)
    )


def train(model: PeftModel, folder: Path, **options: Any) -> list[float]:
    """Train, and return the loss of each step."""
    trainer = make_trainer(model, folder, **options)
    trainer.train()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()  # undo the autocast of `forward`
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def without_dropout(model: nn.Module) -> Any:
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    return model


def tuned(gpt2: GPT2LMHeadModel) -> PeftModel:
    return without_dropout(ITUNING.wrap(gpt2))


def tuned_beside_lora(gpt2: GPT2LMHeadModel) -> PeftModel:
    lora = LORA.wrap(gpt2, adapter="style")
    return without_dropout(ITUNING.wrap(lora.get_base_model(), layers=[2, 3]))


@pytest.fixture
def base(captioner, tmp_path: Path) -> Path:
    """The folder of a captioner without a processor."""
    captioner.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base: Path) -> ITuningForCaptioning:
    return ITuningForCaptioning.from_pretrained(base)


def lora_config(**options: Any) -> LoraConfig:
    return LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **options)


# --- The settings of the Trainer


@pytest.mark.parametrize("accumulated", [1, 2])
def test_label_smoothing_of_the_trainer_is_computed_on_shifted_labels(gpt2, tmp_path: Path, accumulated: int):
    model = tuned(gpt2)
    with torch.no_grad():
        logits = model(TEXT["input_ids"], TEXT["attention_mask"], visual_features=FEATURES).logits
    logits, labels = logits[:, :-1].flatten(0, 1), TEXT["labels"][:, 1:].flatten()
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1).item()
    options = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": accumulated}
    assert train(model, tmp_path, **options)[0] == pytest.approx(expected, rel=1e-5)


def test_neftune_adds_noise_to_the_frozen_embeddings(gpt2, tmp_path: Path):
    plain = train(tuned(copy.deepcopy(gpt2)), tmp_path)
    model = tuned(gpt2)
    noisy = train(model, tmp_path, neftune_noise_alpha=5.0)
    assert abs(noisy[0] - plain[0]) > 1e-4
    assert torch.equal(ITUNING.logits(model), ITUNING.logits(model))  # the noise ends with the training


@pytest.mark.parametrize(
    "make", [tuned, pytest.param(tuned_beside_lora, marks=TWO_METHODS)], ids=["tuner", "beside LoRA"]
)
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"activation_checkpointing": True}], ids=str)
def test_training_resumes_from_a_checkpoint(
    gpt2, tmp_path: Path, make: Callable[[Any], PeftModel], options: dict
):
    losses = train(
        make(copy.deepcopy(gpt2)), tmp_path, steps=4, save_strategy="steps", save_steps=2, **options
    )
    trainer = make_trainer(make(gpt2), tmp_path, steps=4, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert resumed == losses
    assert losses == sorted(losses, reverse=True)


# --- A LoRA over a captioner, kept as a PEFT adapter


SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True},
    {"bf16": True, "activation_checkpointing": True},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("modules_to_save", [None, ["adapter"]])
def test_a_lora_over_a_captioner_is_saved_and_reloaded(base, tmp_path: Path, modules_to_save, options: dict):
    model = get_peft_model(load(base), lora_config(modules_to_save=modules_to_save))
    assert any(".adapter." in name for name, p in model.named_parameters() if p.requires_grad) == bool(
        modules_to_save
    )
    train(model, tmp_path, **options)
    logits, captions = logits_of(model), model.generate(**PIXELS, **BEAMS)
    assert not torch.allclose(logits, logits_of(load(base)), atol=0.1)

    model.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load(base), tmp_path / "lora")
    assert torch.equal(logits_of(again), logits)
    assert torch.equal(again.generate(**PIXELS, **BEAMS), captions)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load(base)))
    assert torch.equal(logits_of(model), logits)

    merged = again.merge_and_unload()
    assert type(merged) is ITuningForCaptioning
    torch.testing.assert_close(logits_of(merged), logits, rtol=0, atol=1e-5)
    assert torch.equal(merged.generate(**PIXELS, **BEAMS), captions)


@pytest.mark.parametrize("over", ["captioner", "language model"])
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_a_seq2seq_trainer_generates_without_the_targets(
    base, gpt2, backbones, tmp_path: Path, over: str, task_type: str | None
):
    if over == "captioner":
        model = get_peft_model(load(base), lora_config(task_type=task_type))
    else:
        model = without_dropout(ITUNING.wrap(gpt2, task_type=task_type))
    trainer = make_trainer(model, tmp_path, predict_with_generate=True)
    trainer.processing_class = AutoTokenizer.from_pretrained(backbones["text"])
    trainer.train()
    output = trainer.predict(range(8), **BEAMS)
    with torch.no_grad():
        loss = model.eval()(**TEXT, **inputs_of(model)).loss.item()
    assert output.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    expected = model.generate(**inputs_of(model), **BEAMS)
    assert torch.equal(torch.tensor(output.predictions)[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("loaded", ["llama"], indirect=True)
def test_a_pattern_limits_a_lora_to_the_language_model(loaded, backbones):
    captioner = make_captioner(backbones | {"text": loaded.name_or_path})
    config = LoraConfig(target_modules=r"text_model\..*self_attn\.(q|v)_proj")
    parameters = get_peft_model(captioner, config).named_parameters()
    trained = {name.split(".lora_")[0] for name, p in parameters if p.requires_grad}
    layers = [f"base_model.model.text_model.model.layers.{i}.self_attn" for i in range(DEPTH)]
    assert trained == {f"{layer}.{name}_proj" for layer in layers for name in "qv"}


def test_recomputed_activations_give_a_lora_the_same_gradients(base):
    def gradients(checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        config = lora_config(modules_to_save=["adapter"], init_lora_weights=False)
        model = get_peft_model(load(base), config).train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable()
        calls = []
        for layer in model.text_model.transformer.h:
            layer.ln_2.register_forward_hook(lambda *_: calls.append(1))
        model(**BATCH).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)

    (expected, calls), (found, recomputed) = gradients(False), gradients(True)
    assert (calls, recomputed) == (4, 8)
    assert len(expected) == 8 + 4 * 8
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_merged_captioner_is_saved_with_its_language_model(base, tmp_path: Path):
    config = lora_config(modules_to_save=["adapter"], init_lora_weights=False)
    merged = get_peft_model(load(base), config).merge_and_unload()
    with pytest.raises(ValueError, match="save_backbone"):
        merged.save_pretrained(tmp_path / "merged")
    merged.save_backbone("text", tmp_path / "text")
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(load(tmp_path / "merged")), logits_of(merged))


def test_transformers_own_adapter_methods_save_and_reload_a_lora(base, tmp_path: Path):
    model = load(base)
    model.add_adapter(lora_config(init_lora_weights=False))
    model.eval().save_pretrained(tmp_path / "lora")
    again = load(base)
    again.load_adapter(str(tmp_path / "lora"))
    assert torch.equal(logits_of(again.eval()), logits_of(model))
    assert not torch.allclose(logits_of(model), logits_of(load(base)), atol=0.1)
