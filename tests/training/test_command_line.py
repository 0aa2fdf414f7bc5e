"""Settings from flags and from a file, one clear error for each that is wrong, and help that reads well."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ituning_hf.training.arguments import SECTIONS, TrainArguments
from ituning_hf.training.command_line import parse_arguments


def write(folder: Path, content: str) -> list[str]:
    """Write a file of settings, and return the flags that read it."""
    path = folder / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return ["--config", str(path)]


def show_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_flags_are_read_in_their_types():
    args = parse_arguments(
        ["--adapter_layers", "0", "-1", "--learning_rate", "3e-4", "--report_to", "wandb", "tensorboard"]
    )
    assert args.adapter_layers == [0, -1]
    assert args.learning_rate == 3e-4
    assert args.report_to == ["wandb", "tensorboard"]


def test_hyphens_are_as_good_as_underscores():
    assert parse_arguments(["--num-scenes", "7"]).num_scenes == 7


def test_a_flag_alone_is_true_and_can_be_taken_back(tmp_path: Path):
    config = write(tmp_path, "gradient_checkpointing: true")
    assert parse_arguments(["--dry_run", "--seed", "1"]).dry_run is True
    assert parse_arguments(config).gradient_checkpointing is True
    assert parse_arguments([*config, "--gradient_checkpointing", "false"]).gradient_checkpointing is False


def test_none_is_an_empty_list():
    args = parse_arguments(["--report_to", "none", "--augmentation", "none"])
    assert (args.report_to, args.augmentation) == ([], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--learning_rat 3", "--learning_rat is no option: did you mean --learning_rate? ituning train"),
        ("--text-mode=gpt2", "--text-mode is no option: did you mean --text_model? "),
        ("--learning 3", "--learning is no option"),  # and no abbreviation of --learning_rate
        ("--xyz", "--xyz is no option. ituning train --help shows them all."),
        ("photos/", "'photos/' belongs to no option."),
        ("--num_scenes many", "--num_scenes is 'many', expected a whole number."),
        ("--num_scenes", "--num_scenes: expected one argument; "),
        ("--adapter_layers 1 x", "--adapter_layers is ['1', 'x'], expected a list, each a whole number."),
        ("--learning_rate nan", "--learning_rate is nan, expected a finite number."),
        ("--dry_run maybe", "--dry_run is 'maybe', expected true or false."),
    ],
)
def test_a_mistake_in_the_command_is_told_in_one_line(line: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse_arguments(line.split())
    assert "\n" not in str(error.value)


def test_flags_win_over_the_file(tmp_path: Path):
    config = write(
        tmp_path, "learning_rate: 5e-4\nnum_train_epochs: 3\nadapter_layers: [1, 2]\nmax_train_steps: null\n"
    )
    args = parse_arguments([*config, "--num_train_epochs", "7"])
    assert (args.learning_rate, args.num_train_epochs, args.adapter_layers) == (5e-4, 7, [1, 2])
    assert args.max_train_steps is None


def test_the_file_is_read_by_the_settings_types_and_not_by_yamls(tmp_path: Path):
    words = "mixed_precision: no\neval_split: none\noutput_dir: 2024\neval_steps: 50\nvision_model: ~\n"
    lists = "report_to: tensorboard\naugmentation: [crop, flip]\n"
    args = parse_arguments(write(tmp_path, words + lists))
    assert (args.mixed_precision, args.eval_split, args.output_dir) == ("no", "none", "2024")
    assert (args.eval_steps, args.report_to, args.augmentation) == ("50", ["tensorboard"], ["crop", "flip"])
    assert args.vision_model is None


def test_an_empty_file_changes_nothing(tmp_path: Path):
    assert parse_arguments(write(tmp_path, "# nothing yet\n")) == TrainArguments()


def test_settings_written_as_json_are_read_back(tmp_path: Path):
    args = TrainArguments(adapter_layers=[2, 3], learning_rate=1e-05, report_to=["wandb"], dry_run=True)
    assert parse_arguments(write(tmp_path, json.dumps(args.to_dict()))) == args


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "'learning_rat' is no setting: did you mean learning_rate?"),
        ("xyz: 1", "'xyz' is no setting."),
        ("seed: 1\nnum_scenes: 5\nseed: 2", "'seed' stands there twice"),
        ("- learning_rate", "holds a list, expected settings as 'name: value'"),
        ("learning_rate", "holds a text, expected settings as 'name: value'"),
        ("a: [1,", "is not YAML: while parsing"),
        ("num_scenes: many", "num_scenes is 'many', expected a whole number"),
        ("num_scenes: 1.5", "num_scenes is '1.5', expected a whole number"),
        ("num_scenes: [1]", "num_scenes is ['1'], expected a whole number"),
        ("adapter_layers: {a: 1}", "adapter_layers is {'a': '1'}, expected a list, each a whole number"),
        ("num_scenes:", "--num_scenes is None, expected a whole number"),
        ("gradient_checkpointing: 1", "gradient_checkpointing is '1', expected true or false"),
        ("learning_rate: true", "learning_rate is 'true', expected a number"),
        ("learning_rate: -1", "--learning_rate is -1.0, expected more than 0"),
        ("learning_rate: .nan", "learning_rate is '.nan', expected a number"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(write(tmp_path, content))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        parse_arguments(["--config", str(tmp_path / "run.yaml")])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"--config nowhere\.yaml: there is no such file"):
        parse_arguments(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (110, 110), (300, 110)])
def test_the_help_fits_the_terminal(capsys, monkeypatch, columns: int, widest: int):
    lines = show_help(capsys, monkeypatch, columns).splitlines()
    assert max(map(len, lines)) <= widest


def test_the_help_says_each_setting_and_its_default_once(capsys, monkeypatch):
    text = show_help(capsys, monkeypatch, 110)
    for section in SECTIONS:
        assert f"\n{section.title}:\n" in text
    for field in dataclasses.fields(TrainArguments):
        lines = re.findall(rf"^  --{field.name}(?: .*)?$", text, flags=re.MULTILINE)
        assert len(lines) == 1, field.name
        described = text.split(f"\n  --{field.name}", 1)[1].split("\n  --", 1)[0].split("\n\n", 1)[0]
        assert described.count("default") == (0 if field.type == "bool" else 1), described
    assert "None" not in text


def test_none_takes_back_an_optional_setting_of_the_file(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("max_train_steps: 1\nadapter_layers: [0, 1]\noutput_dir: ~/runs/a")
    config = ["--config", str(tmp_path / "run.yaml")]
    args = parse_arguments([*config, "--max_train_steps", "none", "--adapter_layers", "none"])
    assert (args.max_train_steps, args.adapter_layers) == (None, None)
    assert args.output_dir == str(Path.home() / "runs" / "a")  # and not a folder named ~


def test_settings_beside_settings_are_no_run_file(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("settings: {seed: 1}\nlearning_rate: 5")
    with pytest.raises(ValueError, match="'settings' is no setting"):
        parse_arguments(["--config", str(tmp_path / "run.yaml")])
