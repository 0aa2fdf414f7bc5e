"""The captioner in `transformers.Trainer` and `Seq2SeqTrainer`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from small_models import make_batch
from small_tokenizers import SENTENCES
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.integrations.neftune import activate_neftune
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.trainer_utils import EvalPrediction

import ituning_hf
from ituning_hf import ITuningForCaptioning

IMAGES, ROWS = 8, 2
A_KEY = "text_model.transformer.h.2.adapter.v_proj.weight"
TEXT = ("input_ids", "attention_mask", "labels")
BATCH = make_batch(images=IMAGES, k=ROWS)
DATA = [
    {"pixel_values": BATCH["pixel_values"][i]}
    | {name: BATCH[name][ROWS * i : ROWS * i + ROWS] for name in TEXT}
    for i in range(IMAGES)
]


def collate(items: list[dict[str, torch.Tensor]], **extra: Any) -> dict[str, torch.Tensor]:
    pixels = torch.stack([item["pixel_values"] for item in items])
    return (
        {"pixel_values": pixels} | {name: torch.cat([item[name] for item in items]) for name in TEXT} | extra
    )


def make_trainer(model: Any, folder: Path, collator: Any = collate, **options: Any) -> Trainer:
    """Build a trainer of plain gradient descent; by default it takes one step on all images."""
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": IMAGES,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(str(folder), **defaults | options)
    return Trainer(model, arguments, collator, train_dataset=DATA, eval_dataset=DATA)


def adapter_weights(model: ITuningForCaptioning) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.adapter_state_dict().items()}


def gradients(model: ITuningForCaptioning, **batch: Any) -> dict[str, torch.Tensor]:
    model.train()(**batch).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "activation_checkpointing": True,
        },
        {"bf16": True, "rtol": 0.1, "atol": 0.02},
    ],
    ids=["one batch", "four batches", "bf16"],
)
def test_a_step_is_that_of_the_full_batch_and_the_adapter_is_saved(captioner, tmp_path: Path, options: Any):
    tolerance = {"rtol": options.pop("rtol", 1e-3), "atol": options.pop("atol", 1e-5)}
    start, expected = adapter_weights(captioner), gradients(captioner, **BATCH)
    trainer = make_trainer(captioner, tmp_path, **options)
    trainer.train()
    step = {name: start[name] - tensor for name, tensor in captioner.adapter_state_dict().items()}
    torch.testing.assert_close(step, expected, **tolerance)

    loss = captioner.eval()(**BATCH).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        loss.item(), rel=max(1e-4, tolerance["rtol"] / 10)
    )
    trainer.save_model()
    loaded = ITuningForCaptioning.from_pretrained(tmp_path)
    torch.testing.assert_close(adapter_weights(loaded), adapter_weights(captioner), rtol=0, atol=0)
    assert (tmp_path / "model.safetensors").stat().st_size < 40_000


# --- Label smoothing


def with_lora(captioner: ITuningForCaptioning, **options: Any) -> Any:
    return get_peft_model(captioner, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **options))


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_a_lora_with_a_task_type_is_trained(captioner, tmp_path: Path, task_type: str):
    expected = captioner.train()(**BATCH).loss.item()  # PEFT passes arguments for that task
    trainer = make_trainer(with_lora(captioner, task_type=task_type), tmp_path)
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrap", [lambda captioner: captioner, with_lora], ids=["captioner", "LoRA"])
def test_the_trainers_label_smoothing_is_refused(captioner, tmp_path: Path, wrap: Any):
    trainer = make_trainer(wrap(captioner), tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing_factor.*batch\['label_smoothing'\] = 0.1"):
        trainer.train()


def test_label_smoothing_in_the_batch_uses_shifted_targets(captioner, tmp_path: Path):
    logits = captioner(**BATCH).logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, BATCH["labels"][:, 1:].flatten(), label_smoothing=0.1)
    trainer = make_trainer(captioner, tmp_path, lambda items: collate(items, label_smoothing=0.1))
    assert trainer.train().training_loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_function_of_the_trainer_can_be_used(captioner, tmp_path: Path):
    def loss(output: CausalLMOutputWithPast, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    expected = captioner(**BATCH).loss.item()
    trainer = make_trainer(captioner, tmp_path)
    trainer.compute_loss_func = loss
    trainer.model_accepts_loss_kwargs = False
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)


# --- Noise on the embeddings


def test_neftune_changes_the_loss_in_training_only(captioner):
    expected = captioner.eval()(**BATCH).loss
    activate_neftune(captioner, 5.0)
    assert torch.equal(captioner(**BATCH).loss, expected)
    rows = []
    captioner.text_model.transformer.h[0].register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[0])
    )
    assert captioner.train()(**BATCH).loss != captioner(**BATCH).loss
    assert rows == [IMAGES * ROWS] * 2  # the noise depends on the length of a row, so rows are not packed


# --- Checkpoints


def test_resuming_and_loading_the_best_model_report_no_missing_weights(
    captioner, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "per_device_train_batch_size": 3}
    best = options | {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    start = adapter_weights(captioner)
    make_trainer(captioner, tmp_path, **best, learning_rate=1e-3).train()
    trained = adapter_weights(captioner)
    captioner.load_state_dict(start, strict=False)
    checkpoint = tmp_path / "checkpoint-1"
    make_trainer(captioner, tmp_path, **options, learning_rate=1e-3).train(
        resume_from_checkpoint=str(checkpoint)
    )
    torch.testing.assert_close(adapter_weights(captioner), trained)
    assert not torch.equal(load_file(checkpoint / "model.safetensors")[A_KEY], trained[A_KEY])
    assert "missing keys" not in caplog.text
    assert "unexpected keys" not in caplog.text


# --- Predictions


def test_predict_returns_logits_and_metrics_are_computed_from_them(captioner, tmp_path: Path):
    expected = captioner(**BATCH)
    shapes: list[Any] = []

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"rows": float(len(prediction.label_ids))}

    # Of a smaller last batch, Accelerate keeps as many rows as there are images.
    trainer = make_trainer(captioner, tmp_path, per_device_eval_batch_size=4)
    trainer.compute_metrics = metrics
    predictions, labels, scores = trainer.predict(DATA)
    np.testing.assert_allclose(predictions, expected.logits.detach().numpy(), atol=1e-4)
    assert np.array_equal(labels, BATCH["labels"].numpy())
    assert scores["test_rows"] == IMAGES * ROWS
    assert scores["test_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    assert shapes == [expected.logits.shape]


def test_seq2seq_trainer_generates_the_captions_of_caption(
    captioner, processor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    draw = np.random.default_rng(4)
    pictures = [Image.fromarray(draw.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(5)]
    captions = [[SENTENCES[i % 3], SENTENCES[(i + 1) % 3]] for i in range(len(pictures))]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        predict_with_generate=True,
        generation_num_beams=3,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    def collate_images(items: list[int]) -> Any:
        images, texts = [pictures[i] for i in items], [captions[i] for i in items]
        return processor(images=images, captions=texts) | {"label_smoothing": 0.0}

    trainer = Seq2SeqTrainer(
        captioner,
        arguments,
        collate_images,
        eval_dataset=list(range(len(pictures))),
        processing_class=processor,
    )
    expected = ituning_hf.caption(captioner, pictures, processor, num_beams=3)
    for _ in range(2):  # the trainer changes the model's generation configuration
        output = trainer.predict(trainer.eval_dataset)
        ids = np.where(output.predictions < 0, processor.tokenizer.pad_token_id, output.predictions)
        texts = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
        assert texts == expected
        losses = [captioner(**collate_images(list(images))).loss.item() for images in ((0, 1), (2, 3), (4,))]
        assert output.metrics["test_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    trainer.save_model()
    loaded, processor = ituning_hf.load_captioner(tmp_path)
    assert ituning_hf.caption(loaded, pictures, processor, num_beams=3) == expected
    assert "max_length" not in caplog.text
