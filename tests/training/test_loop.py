"""The loop: what it learns, writes, refuses, and that a resumed run is the same run."""

import itertools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from small_models import read_log, train_until, validation_scores
from transformers import GPT2LMHeadModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.cli.train import parse_arguments
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.training.errors import NonFiniteLossError, TooManyUnreadableError
from ituning_hf.training.small_backbones import make_small_backbones
from ituning_hf.training.state import TrainState
from ituning_hf.utils.distributed import create_accelerator

Settings = Callable[..., TrainArguments]


def adapter(run: str | Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(Path(run) / name / "model.safetensors")


def assert_same_adapter(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_validation_loss_falls_and_the_best_captioner_is_kept(settings: Settings):
    args = settings(num_train_epochs=4, max_train_steps=None)
    state = train(args)
    validation = validation_scores(args.output_dir, "loss")
    assert list(validation) == [0, 3, 6, 9, 12]  # 11 images in batches of 4
    assert state.best_metric == min(list(validation.values())[1:]) < 0.75 * validation[0]
    assert validation[state.best_step] == state.best_metric
    model = ITuningForCaptioning.from_pretrained(Path(args.output_dir) / "best")
    assert ITuningProcessor.from_pretrained(Path(args.output_dir) / "best").tokenizer is not None
    assert model.config.adapter_hidden_size == 21


def test_the_loss_before_training_is_the_language_models_own(settings: Settings, backbones: dict[str, Path]):
    args = settings(max_train_steps=1)
    train(args)
    processor = ITuningProcessor.from_pretrained(Path(args.output_dir) / "last")
    lines = (Path(args.dataset) / "val" / "metadata.jsonl").read_text().splitlines()
    captions = [json.loads(line)["captions"] for line in lines]
    batch = processor(captions=[[caption] for group in captions for caption in group])
    model = GPT2LMHeadModel.from_pretrained(backbones["text"])
    model.loss_type = "ForCausalLM"
    with torch.no_grad():
        expected = float(model(**batch).loss)
    assert read_log(args.output_dir)[0]["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_what_a_run_leaves_behind(settings: Settings):
    args = settings(max_train_steps=3, checkpointing_steps="2")
    train(args)
    folder = Path(args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "best",
        "checkpoints",
        "last",
        "log.jsonl",
        "run.json",
    ]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "step_00000002",
        "step_00000003",
    ]
    assert sorted(path.name for path in (folder / "checkpoints" / "step_00000002").iterdir()) == [
        "adapter.safetensors",
        "optimizer.bin",
        "random_states_0.pkl",
        "trainer_state.json",
    ]
    saved = load_file(folder / "checkpoints" / "step_00000003" / "adapter.safetensors")
    assert_same_adapter(saved, adapter(folder))
    assert [record["step"] for record in read_log(folder) if "loss" in record] == [1, 2, 3]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_is_the_same_run(settings: Settings, tmp_path: Path, precision: str):
    assert_resumed_is_the_same(settings, tmp_path, mixed_precision=precision, early_stopping_patience=7)


def test_a_run_resumed_after_it_ran_out_of_patience_is_the_same_run(settings: Settings, tmp_path: Path):
    patience = {"early_stopping_patience": 2, "early_stopping_threshold": 1.0}
    assert assert_resumed_is_the_same(settings, tmp_path, **patience).step == 6


def test_a_resumed_run_goes_on_with_the_gradients_scale(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As fp16 has it on CUDA: an overflow skips a step, and when the next one comes hangs on the scale."""
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

    monkeypatch.setattr("ituning_hf.training.cli.create_accelerator", with_scaler)
    assert_resumed_is_the_same(settings, tmp_path)
    whole, resumed = scales[:7], scales[-3:]
    assert resumed == whole[-3:]
    assert any(later < earlier for earlier, later in itertools.pairwise(whole))  # some steps were skipped
    assert any(later > earlier for earlier, later in itertools.pairwise(whole))


def assert_resumed_is_the_same(settings: Settings, tmp_path: Path, **changes: Any) -> TrainState:
    """Train in one go, and again with an interruption; return where both end."""
    common = {
        "adapter_dropout": 0.3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 1,
        "max_train_steps": 7,
        "checkpointing_steps": "2",
        "eval_steps": "2",
        "eval_caption_images": 2,
        "metric_for_best_model": "rouge_l",
    } | changes
    whole = settings(**common, output_dir=str(tmp_path / "whole"))
    state = train(whole)
    # A run that was killed in its fifth step: its checkpoint is of the fourth, its log is ahead.
    cut = tmp_path / "cut"
    shutil.copytree(whole.output_dir, cut)
    for name in ("best", "last", "checkpoints"):
        shutil.rmtree(cut / name)
    four = settings(**common, output_dir=str(tmp_path / "four"))
    train_until(four, 4)
    for name in ("best", "checkpoints"):
        shutil.copytree(Path(four.output_dir) / name, cut / name)

    assert train(settings(**common, output_dir=str(cut), resume_from_checkpoint="latest")) == state
    assert_same_adapter(adapter(cut), adapter(whole.output_dir))
    assert read_log(cut) == read_log(whole.output_dir)
    assert "validation_rouge_l" in read_log(cut)[-1]
    return state


def test_accumulated_batches_make_the_step_of_one_large_batch(settings: Settings, tmp_path: Path):
    shapes = {"large": (8, 1), "accumulated": (2, 4)}
    for name, (images, accumulation) in shapes.items():
        train(
            settings(
                output_dir=str(tmp_path / name),
                per_device_train_batch_size=images,
                gradient_accumulation_steps=accumulation,
                max_train_steps=3,
                learning_rate=1e-3,
            )
        )
    large, accumulated = adapter(tmp_path / "large"), adapter(tmp_path / "accumulated")
    for name, tensor in large.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_only_the_adapter_is_trained(settings: Settings, backbones: dict[str, Path]):
    before = {name: load_file(backbones[name] / "model.safetensors") for name in ("vision", "text")}
    args = settings(max_train_steps=4)
    train(args)
    model = ITuningForCaptioning.from_pretrained(Path(args.output_dir) / "last")
    state = {n.replace(".adapter.", "."): t for n, t in model.text_model.state_dict().items()}
    for name, tensor in before["text"].items():
        assert torch.equal(state[name], tensor), name
    for name, tensor in before["vision"].items():
        kept = model.vision_model.state_dict()[name.removeprefix("vision_model.")]
        assert torch.equal(kept, tensor), name


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_frozen_models_in_lower_precision_train_close_by(settings: Settings, tmp_path: Path, precision: str):
    states = [
        train(settings(output_dir=str(tmp_path / name), frozen_precision=value, num_train_epochs=4))
        for name, value in (("own", None), ("lower", precision))
    ]
    assert states[0].best_metric != states[1].best_metric == pytest.approx(states[0].best_metric, rel=0.03)
    tensors = load_file(tmp_path / "lower" / "best" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert_resumed_is_the_same(settings, tmp_path / "resumed", frozen_precision=precision)


def test_training_without_validation(settings: Settings):
    args = settings(eval_split="none", max_train_steps=2)
    assert train(args).best_metric is None
    assert not (Path(args.output_dir) / "best").exists()
    assert (Path(args.output_dir) / "last").exists()


def test_label_smoothing_and_gradient_checkpointing_are_read(settings: Settings, tmp_path: Path):
    losses = {}
    for name, changes in {
        "plain": {},
        "checkpointed": {"gradient_checkpointing": True},
        "smoothed": {"label_smoothing": 0.2},
    }.items():
        args = settings(output_dir=str(tmp_path / name), max_train_steps=2, **changes)
        train(args)
        losses[name] = [record["loss"] for record in read_log(args.output_dir) if "loss" in record]
    assert losses["checkpointed"] == pytest.approx(losses["plain"], rel=1e-6)
    assert abs(losses["smoothed"][0] - losses["plain"][0]) > 0.01


def test_a_run_in_another_runs_folder_is_refused(settings: Settings):
    train(settings(max_train_steps=1))
    with pytest.raises(FileExistsError, match="holds another run"):
        train(settings(max_train_steps=1))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoints(settings: Settings):
    args = settings(learning_rate=1e30, max_grad_norm=0, checkpointing_steps="1", warmup_ratio=0)
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is (nan|inf) at step (\d) \(epoch .*\), so training"
    ):
        train(args)
    kept = sorted(path.name for path in (Path(args.output_dir) / "checkpoints").iterdir())
    assert kept[0] == "step_00000001"
    assert not (Path(args.output_dir) / "last").exists()


def test_an_unreadable_image_is_named_and_skipped(
    settings: Settings, photos: Path, caplog: pytest.LogCaptureFixture
):
    (photos / "train" / "5.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        state = train(settings(max_train_steps=3, max_unreadable_share=0.1))
    assert state.unreadable == 1
    named = [record.getMessage() for record in caplog.records if "5.png" in record.getMessage()]
    assert len(named) == 1
    assert named[0].startswith("skipped: ")


def test_too_many_unreadable_images_end_the_run(settings: Settings, photos: Path):
    for i in (2, 5):
        (photos / "train" / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(
        TooManyUnreadableError, match=r"2 of 11 images could not be read, .* allows 1 \(one of them: .*2\.png"
    ):
        train(settings(max_train_steps=9, max_unreadable_share=0.1))


def test_a_validation_split_that_cannot_be_read_ends_the_run(settings: Settings, photos: Path):
    for path in (photos / "val").glob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(TooManyUnreadableError, match=r"none of the 3 images could be read"):
        train(settings(max_train_steps=1, max_unreadable_share=1.0))


def test_a_last_step_that_ruins_the_adapter_saves_nothing(settings: Settings):
    args = settings(max_train_steps=1, learning_rate=1e30, warmup_ratio=0.0)
    with pytest.raises(NonFiniteLossError, match="The validation loss is nan at step 1"):
        train(args)
    assert not (Path(args.output_dir) / "best").exists()
    train(settings(max_train_steps=1))  # the folder is free again


@pytest.mark.parametrize(
    "damage", ["incomplete", "truncated", "state", "random states", "no random states", "schedule"]
)
def test_a_damaged_checkpoint_is_refused(settings: Settings, damage: str):
    args = settings(max_train_steps=1)
    train(args)
    folder = Path(args.output_dir) / "checkpoints" / "step_00000001"
    file = folder / "adapter.safetensors"
    if damage == "incomplete":
        tensors = load_file(file)
        save_file({name: tensors[name] for name in list(tensors)[:-1]}, file)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "random states":
        states = folder / "random_states_0.pkl"
        states.write_bytes(states.read_bytes()[:-9])
    elif damage == "schedule":
        state = json.loads((folder / "trainer_state.json").read_text())
        del state["schedule"]
        (folder / "trainer_state.json").write_text(json.dumps(state))
    elif damage == "no random states":
        (folder / "random_states_0.pkl").unlink()
    else:
        (folder / "trainer_state.json").write_text("{")
    message = {
        "incomplete": "does not fit its configuration: 1 missing",
        "truncated": "cannot be read .* corrupt or was cut short",
        "random states": r"step_00000001 is damaged .*: resume from another checkpoint",
        "no random states": r"step_00000001 is damaged .*: resume from another checkpoint",
        "schedule": r"step_00000001 is damaged \(.*: resume from another checkpoint",
        "state": r"trainer_state\.json is damaged .*: resume from another checkpoint",
    }[damage]
    with pytest.raises(ValueError, match=message):
        train(settings(max_train_steps=1, resume_from_checkpoint="latest"))


def test_adapter_settings_are_checked_before_small_backbones_are_made(photos: Path, tmp_path: Path):
    small = {"dataset": str(photos), "output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=r"adapter_layers holds \[99\]"):
        train(TrainArguments(**small, adapter_layers=[99]))
    with pytest.raises(ValueError, match="--max_caption_tokens is 500, and the language model has only 128"):
        train(TrainArguments(**small, max_caption_tokens=500))
    assert not (tmp_path / "run" / "backbones").exists()


def test_a_data_set_without_validation_says_what_to_do(settings: Settings):
    with pytest.raises(ValueError, match="To train without validation, give --eval_split none"):
        train(settings(eval_split="test"))


def test_a_checkpoint_over_other_backbones_is_refused(
    settings: Settings, backbones: dict[str, Path], tmp_path: Path
):
    train(settings(max_train_steps=1))
    other = tmp_path / "other"
    shutil.copytree(backbones["text"], other)
    model = GPT2LMHeadModel.from_pretrained(other)
    torch.nn.init.constant_(model.transformer.ln_f.weight, 1.25)
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="trained over another text model"):
        train(settings(max_train_steps=1, text_model=str(other), resume_from_checkpoint="latest"))


def test_resuming_with_other_settings_is_refused(settings: Settings):
    train(settings(max_train_steps=1))
    with pytest.raises(ValueError, match=r"other settings: it had --learning_rate 0\.01, now 0\.5\. Resume"):
        train(settings(max_train_steps=1, learning_rate=0.5, resume_from_checkpoint="latest"))


def test_a_resumed_run_may_count_its_images(settings: Settings):
    train(settings(max_train_steps=1))
    counts = {"expected_train_images": 11, "expected_eval_images": 3}
    assert train(settings(max_train_steps=1, resume_from_checkpoint="latest", **counts)).step == 1


def test_captions_longer_than_the_language_model_are_refused(settings: Settings):
    with pytest.raises(ValueError, match="--max_caption_tokens is 64, and the language model has only 48"):
        train(settings(max_caption_tokens=64))


def test_what_is_printed_before_the_first_step(settings: Settings, capsys: pytest.CaptureFixture):
    args = settings(max_train_steps=1, max_caption_tokens=9)
    train(args)
    printed = capsys.readouterr().out
    words = ITuningProcessor.from_pretrained(Path(args.output_dir) / "last").tokenizer
    lines = (Path(args.dataset) / "train" / "metadata.jsonl").read_text().splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    over_long = sum(len(words(caption).input_ids) + 2 > 9 for caption in captions)
    assert 0 < over_long < len(captions)
    assert f"Captions   {over_long} are cut at 9 tokens" in printed
    trainable = 4 * (22 * 21 + 21 + 2 * (15 * 21 + 21) + 21 * 22 + 22)  # q, k and v, out; four layers
    assert f"Trainable  {trainable:,} of" in printed
    assert "Images     11 to train on, 3 for validation" in printed


def test_small_backbones_are_made_of_the_data(tmp_path: Path, photos: Path):
    from ituning_hf.data.loading import load_captioned_images

    images = load_captioned_images(photos, "train")
    steps = {"vision_steps": 2, "text_steps": 2, "batch_size": 5, "image_size": 32}
    one = make_small_backbones(tmp_path / "one", images, **steps)
    two = make_small_backbones(tmp_path / "two", images, **steps)
    model = ITuningForCaptioning.from_vision_text_pretrained(*one)
    assert (model.config.vision_config.image_size, model.config.text_config.n_layer) == (32, 4)
    for ours, theirs in zip(one, two, strict=True):  # by seed
        assert_same_adapter(load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors"))


def test_a_run_can_be_made_again_from_what_it_wrote_of_itself(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=2, adapter_layers=[1, 3], report_to=[])
    train(args)
    again = tmp_path / "again"
    run = str(Path(args.output_dir) / "run.json")
    train(parse_arguments(["--config", run, "--output_dir", str(again)]))
    assert_same_adapter(adapter(again), adapter(args.output_dir))
    assert read_log(again) == read_log(args.output_dir)


def test_a_checkpoint_of_other_data_is_refused(settings: Settings, photos: Path):
    train(settings(max_train_steps=1))
    with (photos / "train" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "0.png", "caption": "one caption more"}')
    with pytest.raises(
        ValueError, match=r"images or captions have changed since \(11 images to train on, now"
    ):
        train(settings(max_train_steps=1, resume_from_checkpoint="latest"))


def test_a_run_may_go_on_with_more_patience_for_unreadable_images(settings: Settings, photos: Path):
    (photos / "train" / "5.png").write_bytes(b"not a picture")
    with pytest.raises(TooManyUnreadableError, match="1 of 11 images could not be read"):
        train(settings(max_train_steps=9, max_unreadable_share=0.01, checkpointing_steps="1"))
    assert (
        train(settings(max_train_steps=9, max_unreadable_share=0.2, resume_from_checkpoint="latest")).step
        == 9
    )


def test_what_an_older_checkpoint_makes_anew_is_named(settings: Settings, caplog: pytest.LogCaptureFixture):
    args = settings(max_train_steps=6, checkpointing_steps="2", max_checkpoints=9)
    train(args)
    whole = adapter(args.output_dir)
    older = Path(args.output_dir) / "checkpoints" / "step_00000002"
    train(settings(max_train_steps=6, checkpointing_steps="2", resume_from_checkpoint=str(older)))
    removed = [r.getMessage() for r in caplog.records if r.getMessage().startswith("removed ")]
    assert [Path(text.split()[1].rstrip(":")).name for text in removed] == [
        "last",
        "step_00000006",
        "step_00000004",
    ]
    assert_same_adapter(adapter(args.output_dir), whole)


def test_a_missing_best_captioner_is_made_again(settings: Settings):
    args = settings(max_train_steps=6, checkpointing_steps="3")
    train(args)
    for name in ("best", "last", "checkpoints/step_00000006"):
        shutil.rmtree(Path(args.output_dir) / name)
    train(settings(max_train_steps=6, checkpointing_steps="3", resume_from_checkpoint="latest"))
    assert (Path(args.output_dir) / "best" / "model.safetensors").is_file()


def test_files_can_be_read_by_whoever_may_read_the_folder(settings: Settings):
    args = settings(max_train_steps=1)
    train(args)
    folder = Path(args.output_dir) / "last"
    assert (folder / "model.safetensors").stat().st_mode & 0o666 == folder.stat().st_mode & 0o666
