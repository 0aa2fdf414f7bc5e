"""Settings from flags and from a file, errors that name every mistake, and help that reads well."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.cli import train
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.utils.errors import UserError
from ituning_hf.utils.rules import AT_LEAST_ONE, EVERY, FOLDER, TEXT, one_of, some_of
from ituning_hf.utils.settings import REQUIRED, Settings, option, read_settings


@dataclass
class Fruit(Settings):
    """Settings with a field of every type."""

    names: list[str] = option(REQUIRED, "the fruits", metavar="NAME", positional=True)
    folder: str = option("fruit", "where they lie", FOLDER)
    count: int = option(1, "how many", AT_LEAST_ONE)
    weight: float = option(0.5, "100% of it, in kg")
    ripe: bool = option(False, "only ripe ones")
    washed: bool | None = option(None, "washed or not", unset="both")
    limit: int | None = option(None, "the most", unset="no limit")
    colors: list[str] = option([], "colors", some_of(("red", "green")), unset="all")
    rows: list[int] | None = option(None, "rows of trees", unset="all")
    label: str | None = option(None, "words on the box", TEXT)


def read(line: str, **kwargs: Any) -> Fruit:
    return read_settings(Fruit, line.split(), "fruit", "Picks fruit.", **kwargs)


def read_train(folder: Path, content: str, *argv: str) -> TrainArguments:
    """Read a file of a training run's settings, and flags."""
    (folder / "run.yaml").write_text(content, encoding="utf-8")
    return train.parse_arguments([*argv, "--config", str(folder / "run.yaml")])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("apple", {}),
        ("--count 3 apple pear", {"names": ["apple", "pear"], "count": 3}),
        ("apple --count=3 pear", {"names": ["apple", "pear"], "count": 3}),
        ("apple --weight 5e-4 --limit 7", {"weight": 5e-4, "limit": 7}),
        ("--ripe apple", {"ripe": True}),
        ("--ripe false apple", {}),
        ("--ripe=yes apple --washed no", {"ripe": True, "washed": False}),
        ("apple --colors red green --rows 0 -1", {"colors": ["red", "green"], "rows": [0, -1]}),
        ("apple --colors none --rows none --limit none --washed none", {}),
        ("--folder my-fruit -- --ripe -", {"names": ["--ripe", "-"], "folder": "my-fruit"}),
        ("apple --weight -1e-3 --label ~", {"weight": -1e-3, "label": "~"}),
        ("apple --label none", {"label": "none"}),
        ("- --folder ~/fruit", {"names": ["-"], "folder": str(Path.home() / "fruit")}),
    ],
)
def test_flags_and_positional_arguments(line: str, expected: dict[str, Any]):
    assert read(line) == Fruit(**{"names": ["apple"]} | expected)


def test_hyphens_equal_underscores():
    args = train.parse_arguments(["--num-scenes", "7", "--dry-run", "--output-dir=my-run"])
    assert (args.num_scenes, args.dry_run, args.output_dir) == (7, True, "my-run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --coutn 3", "--coutn is not an option (did you mean --count?). fruit --help shows the options"),
        ("a --col=red", "--col is not an option"),  # not an abbreviation of --colors
        ("a --xyz", "--xyz is not an option. "),
        ("--name a", "--name is not an option: give NAME without a flag. "),
        ("a --names b", "--names is not an option: give NAME without a flag. "),
        ("a --nmes b", "--nmes is not an option. "),
        ("a --count many", "--count is 'many', expected a whole number"),
        ("a --count 0", "--count is 0, expected at least 1"),
        ("a --count", "--count: expected one argument"),
        ("a --label -x", "--label: expected one argument (if it begins with -, write --label=-x)"),
        ("a --rows 1 x", "--rows is ['1', 'x'], expected a whole number"),
        ("a --weight nan", "--weight is nan, expected a finite number"),
        ("a --ripe=maybe", "--ripe is 'maybe', expected true or false"),
        ("a --folder=", "--folder is '', expected a non-empty string"),
        ("--count 2", "NAME is missing"),
    ],
)
def test_a_mistake_gives_one_line(line: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "option"),
    [("epochs", "num_train_epochs"), ("lr", "learning_rate"), ("batch-size", "per_device_train_batch_size")],
)
def test_an_option_of_another_program_is_recognized(flag: str, option: str):
    with pytest.raises(UserError, match=rf"is not an option \(did you mean --{option}\?\)"):
        train.parse_arguments([f"--{flag}", "1"])


def test_an_argument_without_an_option_is_refused():
    with pytest.raises(UserError, match="unexpected argument 'photos/'"):
        train.parse_arguments(["photos/"])


def test_all_mistakes_are_reported_at_once(tmp_path: Path):
    (tmp_path / "fruit.yaml").write_text("count: 0\nnmes: a\nlimit: x")
    with pytest.raises(UserError) as error:
        read(f"--config {tmp_path}/fruit.yaml --limit 0.5 --wieght=1")
    assert str(error.value).splitlines() == [
        "5 errors. fruit --help shows the options:",
        f"- {tmp_path}/fruit.yaml: 'nmes' is not a setting (did you mean names?)",
        "- --wieght is not an option (did you mean --weight?)",
        "- --count is 0, expected at least 1",
        "- --limit is '0.5', expected a whole number",
        "- NAME is missing",
    ]


def test_flags_take_precedence_wherever_they_stand(tmp_path: Path):
    content = "learning_rate: 5e-4\nnum_train_epochs: 3\nadapter_layers: [1, 2]\ndry_run: true\n"
    args = read_train(tmp_path, content, "--num_train_epochs", "7", "--dry_run", "false")
    assert (args.learning_rate, args.num_train_epochs, args.adapter_layers) == (5e-4, 7, [1, 2])
    assert args.dry_run is False


def test_the_field_and_not_yaml_decides_on_the_type(tmp_path: Path):
    words = "mixed_precision: no\neval_split: none\noutput_dir: 2024\neval_steps: 50\nvision_model: ~\n"
    lists = "report_to: tensorboard\naugmentation: [crop, flip]\nmax_train_steps: null\n"
    args = read_train(tmp_path, words + lists)
    assert (args.mixed_precision, args.eval_split, args.output_dir) == ("no", "none", "2024")
    assert (args.eval_steps, args.report_to, args.augmentation) == ("50", ["tensorboard"], ["crop", "flip"])
    assert (args.vision_model, args.max_train_steps) == (None, None)


def test_none_removes_an_optional_setting_of_the_file(tmp_path: Path):
    content = "max_train_steps: 1\nadapter_layers: [0, 1]\noutput_dir: ~/runs/a"
    args = read_train(tmp_path, content, "--max_train_steps", "none", "--adapter_layers", "none")
    assert (args.max_train_steps, args.adapter_layers) == (None, None)
    assert args.output_dir == str(Path.home() / "runs" / "a")


@pytest.mark.parametrize("nested", [False, True])
def test_saved_settings_are_read_back(tmp_path: Path, nested: bool):
    args = TrainArguments(adapter_layers=[2, 3], learning_rate=1e-05, report_to=["wandb"], dry_run=True)
    content = {"ituning_hf": "1", "settings": args.to_dict()} if nested else args.to_dict()
    assert read_train(tmp_path, json.dumps(content)) == args


def test_an_empty_file_changes_nothing(tmp_path: Path):
    assert read_train(tmp_path, "# nothing yet\n") == TrainArguments()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "run.yaml: 'learning_rat' is not a setting (did you mean learning_rate?)"),
        ("xyz: 1", "'xyz' is not a setting."),
        ("seed: 1\nsettings: {seed: 3}", "'settings' is not a setting"),
        ("seed: 1\nnum_scenes: 5\nseed: 2", "'seed' appears twice"),
        ("- learning_rate", "holds no settings, expected lines of 'name: value'"),
        ("learning_rate", "holds no settings"),
        ("a: [1,", "is not a YAML file of settings: while parsing"),
        ("seed: 1\nlearning_rate: !!float 3", "!!float in line 2 is a tag: write the value alone"),
        ("seed: !!python/object/apply:os.getpid []", "!!python/object/apply:os.getpid in line 1 is a tag"),
        ("num_scenes: 1.5", "num_scenes is '1.5', expected a whole number"),
        ("num_scenes: [1]", "num_scenes is ['1'], expected a whole number"),
        ("adapter_layers: {a: 1}", "adapter_layers is {'a': '1'}, expected a whole number"),
        ("num_scenes:", "--num_scenes is None, expected a whole number"),
        ("gradient_checkpointing: 1", "gradient_checkpointing is '1', expected true or false"),
        ("learning_rate: true", "learning_rate is 'true', expected a number"),
        ("learning_rate: .nan", "learning_rate is '.nan', expected a number"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        read_train(tmp_path, content)


def test_a_file_that_is_not_text_or_does_not_exist_is_named(tmp_path: Path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UserError, match=r"run\.yaml is not a YAML file"):
        train.parse_arguments(["--config", str(tmp_path / "run.yaml")])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        train.parse_arguments(["--config", "nowhere.yaml"])


def show_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        train.parse_arguments(["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(("columns", "widest"), [(80, 80), (110, 110), (300, 110)])
def test_the_help_fits_the_terminal(capsys, monkeypatch, columns: int, widest: int):
    lines = show_help(capsys, monkeypatch, columns).splitlines()
    assert max(map(len, lines)) <= widest


def test_the_help_shows_each_setting_and_its_default_once(capsys, monkeypatch):
    text = show_help(capsys, monkeypatch, 110)
    for field in dataclasses.fields(TrainArguments):
        lines = re.findall(rf"^  --{field.name}(?: .*)?$", text, flags=re.MULTILINE)
        assert len(lines) == 1, field.name
        described = text.split(f"\n  --{field.name}", 1)[1].split("\n  --", 1)[0].split("\n\n", 1)[0]
        has_no_default = field.default is None or field.default is False
        expected = 0 if has_no_default and field.metadata["unset"] is None else 1
        assert described.count("(default:") == expected, described
    assert "None" not in text


def test_the_help_has_the_groups_of_the_settings_bases_in_their_order(capsys, monkeypatch):
    titles = re.findall(r"^(\S.*):$", show_help(capsys, monkeypatch, 110), flags=re.MULTILINE)
    groups = ["model", "data", "objective", "optimization", "validation", "run"]
    assert titles == ["options", *groups, "examples"]


def test_the_help_of_positional_arguments_lists_and_percent_signs(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("--help", examples="examples:\n  fruit apple")
    text = capsys.readouterr().out
    assert text.startswith("usage: fruit NAME [--config FILE] [--OPTION VALUE ...]\n\nPicks fruit.\n")
    for line in (
        "  NAME ",
        "  --colors red|green [red|green ...]",
        "  --ripe  ",
        "100% of it, in kg (default: 0.5)",
    ):
        assert line in text
    assert text.endswith("examples:\n  fruit apple\n")


def test_python_callers_may_give_paths_tuples_and_single_values():
    fruit = Fruit(names="apple", folder=Path("a") / "b", colors=("red", "green"), rows=3, weight=2)
    assert (fruit.names, fruit.folder) == (["apple"], str(Path("a") / "b"))
    assert (fruit.colors, fruit.rows, fruit.weight) == (["red", "green"], [3], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 3.0}, "--count is 3.0, expected a whole number"),
        ({"count": True}, "--count is True, expected a whole number"),
        ({"weight": True}, "--weight is True, expected a number"),
        ({"weight": -math.inf}, "--weight is -inf, expected a finite number"),
        ({"ripe": 1}, "--ripe is 1, expected true or false"),
        ({"count": None}, "--count is None, expected a whole number"),
        ({"count": 0, "weight": "much"}, "2 errors:\n- --count is 0, expected at least 1\n- --weight is"),
    ],
)
def test_python_callers_get_the_same_errors(change: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        Fruit(**{"names": ["apple"]} | change)


def test_two_settings_do_not_share_a_list():
    first, second = TrainArguments(), TrainArguments()
    first.report_to.append("wandb")
    assert second.report_to == []


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (EVERY, ["epoch", "1", "500"], ["0", "-1", "1.5", "often", ""]),
        (one_of(("a", "b")), ["a"], ["c", ""]),
        (some_of(("a", "b")), [[], ["b"], ["b", "a"]], [["a", "a"], ["c"], ["a", "c"]]),
    ],
)
def test_rules(rule: Any, right: list, wrong: list):
    assert [rule.holds(value) for value in right] == [True] * len(right)
    assert [rule.holds(value) for value in wrong] == [False] * len(wrong)
