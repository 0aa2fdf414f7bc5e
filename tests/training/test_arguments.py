"""The checks of every setting, and of combinations."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.training.arguments import TrainArguments

REFUSED: dict[str, list[Any]] = {
    "adapter_hidden_size": [0],
    "adapter_layers": [[0.5]],
    "adapter_dropout": [1.0],
    "no_repeat_ngram_size": [-1, 2.0],
    "dataset": [" "],
    "num_scenes": [0, None, 2.0],
    "max_caption_tokens": [2],
    "augmentation": [["crop", "blur"]],
    "max_unreadable_share": [-0.1],
    "dataloader_num_workers": [-1],
    "objective": ["bleu"],
    "sampling": ["greedy"],
    "num_samples": [0],
    "baseline": ["none"],
    "cross_entropy_weight": [1.0],
    "num_train_epochs": [0],
    "learning_rate": [0.0, "fast"],
    "lr_scheduler_type": ["step"],
    "warmup_ratio": [1.5],
    "frozen_precision": ["int4"],
    "mixed_precision": ["int8"],
    "gradient_checkpointing": [1],
    "seed": [-1],
    "eval_split": ["dev"],
    "eval_steps": ["0"],
    "metric_for_best_model": ["meteor"],
    "early_stopping_patience": [0],
    "checkpointing_steps": ["often"],
    "report_to": [["all"], ["wandb", "wandb"]],
}
FLOATS = [field.name for field in dataclasses.fields(TrainArguments) if field.type == "float"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_a_wrong_value_is_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=re.escape(f"--{name} is {value!r}, expected ")):
        TrainArguments(**{name: value})


@pytest.mark.parametrize("name", FLOATS)
def test_no_setting_may_be_nan_or_infinite(name: str):
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"--{name} is {value}, expected a finite number"):
            TrainArguments(**{name: value})


NO_VALIDATION = {"eval_split": "none"}
CIDER = {"objective": "cider", "init_from": "run"}


def test_a_preset_sets_options_that_are_not_given():
    assert TrainArguments().vision_feature_norm is None  # the configuration's default
    assert TrainArguments(preset="paper").vision_feature_norm is False
    assert TrainArguments(preset="paper", vision_feature_norm=True).vision_feature_norm is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "stored", "augmentation": ["flip"]}, "--augmentation flip .* --features"),
        ({"metric_for_best_model": "cider"}, "--metric_for_best_model cider .*: give --eval_caption_images"),
        ({"objective": "cider"}, "--objective cider requires a captioner .* --init_from"),
        (CIDER | {"label_smoothing": 0.1}, r"--label_smoothing 0\.1 cannot .* --objective cider"),
        (CIDER | {"num_samples": 1}, "--baseline mean .* at least 2, or .*--baseline greedy"),
        (CIDER | {"baseline": "greedy"}, "--baseline greedy requires --sampling random"),
        ({"sampling": "random"}, "--sampling belongs to --objective cider"),
        ({"num_samples": 3}, "--num_samples belongs to --objective cider"),
        ({"baseline": "greedy"}, "--baseline belongs to --objective cider"),
        ({"cross_entropy_weight": 0}, "--cross_entropy_weight belongs to --objective cider"),
        (NO_VALIDATION | {"eval_caption_images": 9}, "--eval_caption_images requires validation"),
        (NO_VALIDATION | {"expected_eval_images": 9}, "--expected_eval_images requires validation"),
        (NO_VALIDATION | {"early_stopping_patience": 2}, "--early_stopping_patience requires validation"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainArguments(**settings)


def test_values_given_in_python_are_converted(tmp_path: Path):
    args = TrainArguments(output_dir=tmp_path, report_to="tensorboard", augmentation="none", eval_steps=50)
    assert args.output_dir == str(tmp_path)
    assert (args.report_to, args.augmentation, args.eval_steps) == (["tensorboard"], [], "50")
    args.report_to.append("wandb")
    assert TrainArguments().report_to == []
