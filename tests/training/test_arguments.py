"""Settings from flags and from YAML, and one clear error for each that is wrong."""

from pathlib import Path

import pytest

from ituning_hf.training import TrainArguments, parse_arguments


def test_flags_are_read_in_their_types():
    args = parse_arguments(
        ["--adapter_layers", "0", "-1", "--learning_rate", "3e-4", "--gradient_checkpointing", "true"]
    )
    assert args.adapter_layers == [0, -1]
    assert args.learning_rate == 3e-4
    assert args.gradient_checkpointing is True


def test_without_flags_it_trains_on_the_built_in_scenes():
    args = parse_arguments([])
    assert (args.dataset, args.vision_model, args.text_model) == ("scenes", None, None)


def test_flags_win_over_the_file(tmp_path: Path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "learning_rate: 5e-4\nnum_train_epochs: 3\nadapter_layers: [1, 2]\nmax_train_steps: null\n"
    )
    args = parse_arguments(["--config", str(config), "--num_train_epochs", "7"])
    assert (args.learning_rate, args.num_train_epochs, args.adapter_layers) == (5e-4, 7, [1, 2])
    assert args.max_train_steps is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", r"unknown setting\(s\) \['learning_rat'\]; known are"),
        ("- learning_rate", "holds a list, expected settings as 'name: value'"),
        ("a: [1,", "is not YAML: while parsing"),
        ("num_scenes: many", "num_scenes is 'many', expected int"),
        ("num_scenes: 1.5", r"num_scenes is 1\.5, expected int"),
        ("gradient_checkpointing: 1", "gradient_checkpointing is 1, expected bool"),
        ("learning_rate: true", "learning_rate is True, expected float"),
        ("learning_rate: -1", r"--learning_rate is -1\.0, expected more than 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(config)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_model": "clip"}, "only --vision_model is given"),
        ({"text_model": "gpt2"}, "only --text_model is given"),
        ({"captions_per_image": 0}, "--captions_per_image is 0, expected at least 1"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0"),
        ({"max_caption_tokens": 2}, "--max_caption_tokens is 2, expected at least 3"),
        ({"num_train_epochs": 0}, "--num_train_epochs is 0, expected more than 0"),
        ({"max_train_steps": 0}, "--max_train_steps is 0, expected at least 1"),
        ({"warmup_ratio": 1.5}, r"--warmup_ratio is 1\.5, expected 0 to 1"),
        ({"max_unreadable_share": -0.1}, "--max_unreadable_share is -0.1"),
        ({"label_smoothing": 1.0}, r"--label_smoothing is 1\.0, expected 0 to 1, 1 excluded"),
        ({"max_grad_norm": -1}, "--max_grad_norm is -1, expected at least 0"),
        ({"seed": -1}, "--seed is -1, expected at least 0"),
        ({"lr_scheduler_type": "step"}, "--lr_scheduler_type is 'step', expected one of linear, cosine"),
        ({"mixed_precision": "int8"}, "--mixed_precision is 'int8', expected one of no, bf16, fp16"),
        ({"eval_split": "dev"}, "--eval_split is 'dev', expected one of val, test, none"),
        ({"checkpointing_steps": "often"}, "--checkpointing_steps is 'often', expected 'epoch' or"),
        ({"checkpointing_steps": "0"}, "--checkpointing_steps is '0'"),
    ],
)
def test_a_value_out_of_range_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainArguments(**change)
