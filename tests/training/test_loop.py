"""The loop: learning, files, output, and bit-exact resumption."""

import itertools
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from runs import Settings, adapter, checkpoints, dataset_captions, differences, losses
from safetensors.torch import load_file
from small_models import train_until, validation_scores
from transformers import GPT2LMHeadModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.cli.train import parse_arguments
from ituning_hf.training.checkpoints import TrainState
from ituning_hf.training.errors import TrainingError
from ituning_hf.training.run import train
from ituning_hf.utils.distributed import create_accelerator


def test_a_run_learns_and_leaves_its_files(settings: Settings, backbones: dict[str, Path]):
    args = settings(num_train_epochs=4, max_train_steps=None, checkpointing_steps="5")
    state = train(args)
    folder = Path(args.output_dir)
    validation = validation_scores(folder, "loss")
    assert list(validation) == [0, 3, 6, 9, 12]  # 11 images in batches of 4
    assert state.best_metric == min(list(validation.values())[1:]) < 0.75 * validation[0]
    assert validation[state.best_step] == state.best_metric
    assert len(losses(args)) == 12 + 5

    names = [".lock", "best", "checkpoints", "last", "log.jsonl", "report.html", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "id" not in json.loads((folder / "run.json").read_text())  # only trackers need one
    assert checkpoints(folder) == ["step_00000010", "step_00000012"]
    newest = folder / "checkpoints" / "step_00000012"
    assert sorted(path.name for path in newest.iterdir()) == [
        "adapter.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
    ]
    saved, last = load_file(newest / "adapter.safetensors"), adapter(folder)
    assert saved.keys() == last.keys()
    assert all(torch.equal(tensor, last[name]) for name, tensor in saved.items())
    # safetensors gives its files to the owner alone.
    weights, readable = folder / "last" / "model.safetensors", (folder / "last").stat().st_mode & 0o666
    assert weights.stat().st_mode & 0o666 == readable

    model = ITuningForCaptioning.from_pretrained(folder / "best")
    assert model.config.adapter_hidden_size == 21
    frozen = {
        "vision": {f"vision_model.{name}": x for name, x in model.vision_model.state_dict().items()},
        "text": {n.replace(".adapter.", "."): x for n, x in model.text_model.state_dict().items()},
    }
    for backbone, tensors in frozen.items():
        for name, tensor in load_file(backbones[backbone] / "model.safetensors").items():
            assert torch.equal(tensors[name], tensor), name


def test_loss_before_training_is_the_language_models_own(settings: Settings, backbones: dict[str, Path]):
    args = settings(max_train_steps=1)
    train(args)
    processor = ITuningProcessor.from_pretrained(Path(args.output_dir) / "last")
    captions = dataset_captions(args, "val").values()
    batch = processor(captions=[[caption] for group in captions for caption in group])
    model = GPT2LMHeadModel.from_pretrained(backbones["text"])
    model.loss_type = "ForCausalLM"
    with torch.no_grad():
        expected = float(model(**batch).loss)
    assert losses(args)[0] == pytest.approx(expected, rel=1e-5)


# --- Resumption


def assert_resumed_is_the_same(settings: Settings, tmp_path: Path, **changes: Any) -> TrainState:
    """Train without and with an interruption, and return the final state of both."""
    common = {
        "adapter_dropout": 0.3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "max_train_steps": 7,
        "checkpointing_steps": "2",
        "eval_steps": "2",
    } | changes
    whole, cut = (settings(name, **common) for name in ("whole", "cut"))
    state = train(whole)
    train_until(cut, 4)
    # A run that was killed in its fifth step: the log has more steps than the checkpoint.
    shutil.copy(tmp_path / "whole" / "log.jsonl", tmp_path / "cut" / "log.jsonl")
    assert train(replace(cut, resume_from_checkpoint="latest")) == state
    assert differences(cut.output_dir, whole.output_dir) == []
    return state


@pytest.mark.parametrize(
    ("changes", "last_step"),
    [
        (
            {"dataloader_num_workers": 1, "eval_caption_images": 2, "metric_for_best_model": "rouge_l"},
            7,
        ),
        ({"mixed_precision": "bf16", "frozen_precision": "bfloat16"}, 7),
        ({"frozen_precision": "int8", "gradient_checkpointing": True}, 7),
        ({"early_stopping_patience": 2, "early_stopping_threshold": 1.0}, 6),
    ],
    ids=["scored, a worker", "bf16", "int8", "out of patience"],
)
def test_a_resumed_run_writes_the_same_bytes(
    settings: Settings, tmp_path: Path, changes: dict, last_step: int
):
    assert assert_resumed_is_the_same(settings, tmp_path, **changes).step == last_step


def test_a_resumed_run_continues_with_the_gradient_scale(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with fp16 on CUDA: an overflow skips a step, and the scale decides when the next one is skipped."""
    scales = []

    def with_scaler(*args: Any, **kwargs: Any) -> Accelerator:
        accelerator = create_accelerator(*args, **kwargs)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1)
        update = accelerator.scaler.update

        def watched() -> None:
            update()
            scales.append(accelerator.scaler.get_scale())

        accelerator.scaler.update = watched
        return accelerator

    monkeypatch.setattr("ituning_hf.training.run.create_accelerator", with_scaler)
    assert_resumed_is_the_same(settings, tmp_path)
    whole, resumed = scales[:7], scales[-3:]
    assert resumed == whole[-3:]
    assert any(later < earlier for earlier, later in itertools.pairwise(whole))  # some steps were skipped
    assert any(later > earlier for earlier, later in itertools.pairwise(whole))


def test_a_run_can_be_repeated_from_its_run_file(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=2, adapter_layers=[1, 3], report_to=[])
    train(args)
    run = str(Path(args.output_dir) / "run.json")
    train(parse_arguments(["--config", run, "--output_dir", str(tmp_path / "again")]))
    # The page lists the given settings, and the run file gives all.
    assert differences(tmp_path / "again", args.output_dir) == ["report.html"]


# --- Options


def test_accumulated_batches_are_one_large_batch(settings: Settings, tmp_path: Path):
    common = {"max_train_steps": 3, "learning_rate": 1e-3}
    train(settings("large", **common, per_device_train_batch_size=8))
    train(settings("accumulated", **common, per_device_train_batch_size=2, gradient_accumulation_steps=4))
    large, accumulated = adapter(tmp_path / "large"), adapter(tmp_path / "accumulated")
    for name, tensor in large.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_frozen_models_in_lower_precision_train_to_a_similar_loss(settings: Settings):
    best = {}
    for precision in (None, "bfloat16", "int8"):
        args = settings(str(precision), frozen_precision=precision)
        best[precision] = train(args).best_metric
        assert {tensor.dtype for tensor in adapter(args.output_dir, "best").values()} == {torch.float32}
    own = best.pop(None)
    assert own not in best.values()
    assert list(best.values()) == pytest.approx([own, own], rel=0.03)


def test_gradient_checkpointing_keeps_the_losses_and_label_smoothing_changes_them(settings: Settings):
    common = {"max_train_steps": 2, "eval_split": "none"}
    plain, checkpointed, smoothed = runs = (
        settings("plain", **common),
        settings("checkpointed", **common, gradient_checkpointing=True),
        settings("smoothed", **common, label_smoothing=0.2),
    )
    for args in runs:
        train(args)
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-6)
    assert abs(losses(smoothed)[0] - losses(plain)[0]) > 0.01


# --- Unreadable images


def test_an_unreadable_image_is_logged_once_and_skipped(
    settings: Settings, photos: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
):
    (photos / "train" / "5.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        state = train(settings(max_train_steps=4, max_unreadable_share=0.1))
    assert state.unreadable in (0, 1)  # of the second epoch so far
    logged = [record.getMessage() for record in caplog.records if "5.png" in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].startswith("skipped: ")
    assert "Skipped    1 images" in capsys.readouterr().out


def test_too_many_unreadable_images_end_the_run_and_it_resumes_with_a_higher_limit(
    settings: Settings, photos: Path
):
    for i in (2, 5):
        (photos / "train" / f"{i}.png").write_bytes(b"not a picture")
    common = {"max_train_steps": 9, "checkpointing_steps": "1"}
    with pytest.raises(TrainingError, match=r"2 of 11 images .* allows 1 \(for example: .*2\.png"):
        train(settings(**common, max_unreadable_share=0.1))
    assert train(settings(**common, max_unreadable_share=0.2, resume_from_checkpoint="latest")).step == 9


def test_an_unreadable_validation_split_ends_the_run(settings: Settings, photos: Path):
    for path in (photos / "val").glob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"3 of 3 images could not be read"):
        train(settings(max_train_steps=1, max_unreadable_share=1.0))


# --- Output


def test_output_before_the_first_step(settings: Settings, capsys: pytest.CaptureFixture):
    args = settings(max_train_steps=1, max_caption_tokens=9)
    train(args)
    printed = capsys.readouterr().out
    tokenizer = ITuningProcessor.from_pretrained(Path(args.output_dir) / "last").tokenizer
    captions = [caption for group in dataset_captions(args, "train").values() for caption in group]
    over_long = sum(len(tokenizer(caption).input_ids) + 2 > 9 for caption in captions)
    assert 0 < over_long < len(captions)
    assert f"Captions   {over_long / len(captions):.2%} are cut at 9 tokens" in printed
    trainable = 4 * (22 * 21 + 21 + 2 * (15 * 21 + 21) + 21 * 22 + 22)  # q, k and v, out; four layers
    assert f"Trainable  {trainable:,} of" in printed
    assert "Images     11 to train on, 3 for validation" in printed
    assert "Few steps  1 in total" in printed
