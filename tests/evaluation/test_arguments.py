"""The settings of an evaluation, and its command."""

from pathlib import Path

import pytest

from ituning_hf.cli import main
from ituning_hf.cli.evaluate import parse_arguments
from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.command import command_of, public_settings


def test_a_file_and_flags_which_win_over_it(tmp_path: Path):
    path = tmp_path / "coco.yaml"
    path.write_text("model: best\ndataset: coco.json\nnum_beams: 5\njava: true\n")
    args = parse_arguments(["--config", str(path), "--num_beams", "3", "--batch_size", "32"])
    assert args == EvaluateArguments(model="best", dataset="coco.json", num_beams=3, java=True, batch_size=32)


@pytest.mark.parametrize(
    ("given", "which"), [({}, "neither is"), ({"model": "a", "predictions": "b"}, "both are")]
)
def test_captions_come_from_one_place(given: dict, which: str):
    with pytest.raises(ValueError, match=f"{which} given: give one of them"):
        EvaluateArguments(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "--split is 'dev', expected one of train, val, test"),
        ({"dtype": "half"}, "--dtype is 'half', expected one of float32, bfloat16, float16"),
        ({"quantization": "int4"}, "--quantization is 'int4', expected one of int8"),
        ({"batch_size": 0}, "--batch_size is 0, expected at least 1"),
        ({"max_unreadable_share": 1.5}, "--max_unreadable_share is 1.5, expected 0 to 1"),
    ],
)
def test_values_out_of_range(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EvaluateArguments(model="best", **change)


def test_the_command_line_for_others_names_no_place_on_the_machine():
    args = EvaluateArguments(
        model="/home/me/runs/my captioner", dataset="data/coco.json", image_root="~/coco", num_beams=3
    )
    assert command_of(args) == (
        "ituning evaluate --model 'path/to/my captioner' --num_beams 3 --dataset data/coco.json "
        "--image_root path/to/coco --split test"
    )
    assert public_settings(args)["model"] == "my captioner"
    java = EvaluateArguments(model="best", java=False)
    assert parse_arguments(command_of(java).split()[2:]) == java


def test_the_command_line_for_others_names_the_benchmark_and_nothing_without_effect():
    args = EvaluateArguments(
        model="org/x",
        dataset_name="My photos",
        features="/data/store",
        expected_images=7,
        batch_size=3,
        dataloader_num_workers=0,
    )
    assert command_of(args) == (
        "ituning evaluate --model org/x --dataset scenes --split test --dataset_name 'My photos'"
        "  # from stored features"
    )


def test_the_command_has_its_own_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    assert "--max_unreadable_share" in printed
    for told in ("Exit code: 0;", "pip install 'ituning_hf[eval]'", "METEOR needs Java", "Java 8 to 11"):
        assert told in printed


def test_a_mistake_is_told_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "--modle", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ituning: error: --modle is no option: did you mean --model?")
