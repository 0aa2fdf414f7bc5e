"""Every setting is checked, alone and beside the others, and says its own name when it is wrong."""

import dataclasses
import math
from pathlib import Path

import pytest

from ituning_hf.training.arguments import SECTIONS, TrainArguments


def test_by_default_it_trains_on_the_built_in_scenes():
    args = TrainArguments()
    assert (args.dataset, args.vision_model, args.text_model) == ("scenes", None, None)
    assert (args.report_to, args.augmentation, args.dry_run) == ([], [], False)


def test_the_sections_hold_every_setting_once():
    names = [field.name for section in SECTIONS for field in dataclasses.fields(section)]
    assert names == list(TrainArguments().to_dict())


def test_values_of_python_callers_are_brought_into_form(tmp_path: Path):
    args = TrainArguments(output_dir=tmp_path, report_to="tensorboard", augmentation="none", eval_steps=50)
    assert args.output_dir == str(tmp_path)
    assert (args.report_to, args.augmentation, args.eval_steps) == (["tensorboard"], [], "50")


def test_lists_of_two_runs_are_not_one():
    first, second = TrainArguments(), TrainArguments()
    first.report_to.append("wandb")
    assert second.report_to == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_model": "clip"}, "only --vision_model is given"),
        ({"text_model": "gpt2"}, "only --text_model is given"),
        ({"adapter_hidden_size": 0}, "--adapter_hidden_size is 0, expected at least 1"),
        ({"adapter_num_heads": 0}, "--adapter_num_heads is 0, expected at least 1"),
        ({"adapter_layers": 3}, "--adapter_layers is 3, expected a list, each a whole number"),
        ({"adapter_dropout": 1.0}, r"--adapter_dropout is 1\.0, expected 0 to 1, 1 excluded"),
        ({"dataset": " "}, "--dataset is ' ', expected something"),
        ({"image_column": ""}, "--image_column is '', expected something, not an empty text"),
        ({"caption_column": ""}, "--caption_column is '', expected something, not an empty text"),
        ({"num_scenes": 0}, "--num_scenes is 0, expected at least 1"),
        ({"num_scenes": None}, "--num_scenes is None, expected a whole number"),
        ({"num_scenes": 2.0}, r"--num_scenes is 2\.0, expected a whole number"),
        ({"val_share": 0.0}, r"--val_share is 0\.0, expected more than 0 and less than 1"),
        ({"val_share": 1}, "--val_share is 1, expected more than 0 and less than 1"),
        ({"captions_per_image": 0}, "--captions_per_image is 0, expected at least 1"),
        ({"max_caption_tokens": 2}, "--max_caption_tokens is 2, expected at least 3"),
        (
            {"augmentation": ["crop", "blur"]},
            r"\['crop', 'blur'\], expected none, or any of",
        ),
        ({"max_unreadable_share": -0.1}, r"--max_unreadable_share is -0\.1, expected 0 to 1"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers is -1, expected at least 0"),
        ({"num_train_epochs": 0}, "--num_train_epochs is 0, expected more than 0"),
        ({"max_train_steps": 0}, "--max_train_steps is 0, expected at least 1"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0"),
        ({"learning_rate": 0.0}, r"--learning_rate is 0\.0, expected more than 0"),
        ({"learning_rate": "fast"}, "--learning_rate is 'fast', expected a number"),
        ({"lr_scheduler_type": "step"}, "--lr_scheduler_type is 'step', expected one of linear, cosine"),
        ({"warmup_ratio": 1.5}, r"--warmup_ratio is 1\.5, expected 0 to 1"),
        ({"weight_decay": -0.1}, r"--weight_decay is -0\.1, expected at least 0"),
        ({"label_smoothing": 1.0}, r"--label_smoothing is 1\.0, expected 0 to 1, 1 excluded"),
        ({"max_grad_norm": -1}, "--max_grad_norm is -1, expected at least 0"),
        (
            {"frozen_precision": "int4"},
            "--frozen_precision is 'int4', expected one of float32, bfloat16, int8",
        ),
        ({"mixed_precision": "int8"}, "--mixed_precision is 'int8', expected one of no, bf16, fp16"),
        ({"gradient_checkpointing": 1}, "--gradient_checkpointing is 1, expected true or false"),
        ({"seed": -1}, "--seed is -1, expected 0 to 2147483647"),
        ({"eval_split": "dev"}, "--eval_split is 'dev', expected one of val, test, none"),
        ({"eval_steps": "0"}, "--eval_steps is '0', expected 'epoch' or a number of steps"),
        ({"eval_caption_images": -1}, "--eval_caption_images is -1, expected at least 0"),
        ({"num_sample_captions": -1}, "--num_sample_captions is -1, expected at least 0"),
        ({"metric_for_best_model": "meteor"}, "expected one of loss, bleu_4, rouge_l, cider"),
        ({"metric_for_best_model": "cider"}, "and --eval_caption_images is 0: give a number"),
        ({"eval_caption_images": 9, "eval_split": "none"}, "--eval_caption_images needs validation"),
        (
            {"metric_for_best_model": "cider", "eval_caption_images": 9, "eval_split": "none"},
            "--eval_caption_images needs validation, and --eval_split is 'none'",
        ),
        ({"expected_eval_images": 9, "eval_split": "none"}, "--expected_eval_images needs validation"),
        ({"expected_train_images": 0}, "--expected_train_images is 0, expected at least 1"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience is 0, expected at least 1"),
        ({"early_stopping_patience": 2, "eval_split": "none"}, "--early_stopping_patience needs validation"),
        ({"early_stopping_threshold": -0.1}, r"--early_stopping_threshold is -0\.1, expected at least 0"),
        ({"output_dir": ""}, "--output_dir is '', expected something"),
        ({"checkpointing_steps": "often"}, "--checkpointing_steps is 'often', expected 'epoch' or"),
        ({"max_checkpoints": 0}, "--max_checkpoints is 0, expected at least 1"),
        ({"report_to": ["all"]}, r"--report_to is \['all'\], expected none, or any of tensorboard, trackio"),
        ({"report_to": ["wandb", "wandb"]}, "each once"),
    ],
)
def test_a_wrong_value_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainArguments(**change)


FLOATS = [field.name for field in dataclasses.fields(TrainArguments) if field.type == "float"]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_setting_may_be_nan_or_infinite(name: str, value: float):
    with pytest.raises(ValueError, match=f"--{name} is {value}, expected a finite number"):
        TrainArguments(**{name: value})


def test_captions_may_decide_what_is_best():
    args = TrainArguments(metric_for_best_model="cider", eval_caption_images=9, early_stopping_patience=1)
    assert args.metric_for_best_model == "cider"
