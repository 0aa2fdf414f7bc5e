"""What is said of a file that is another command's."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.arguments import parse_arguments as parse_evaluation
from ituning_hf.features.arguments import BuildArguments
from ituning_hf.features.arguments import parse_arguments as parse_build
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.command_line import parse_arguments as parse_training
from ituning_hf.utils.settings.command_line import TELLING

SETTINGS = {
    "ituning train": TrainArguments,
    "ituning evaluate": EvaluateArguments,
    "ituning features build": BuildArguments,
}
CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"


def test_the_telling_settings_are_of_one_command_each():
    names = {command: {field.name for field in dataclasses.fields(SETTINGS[command])} for command in TELLING}
    assert names.keys() == SETTINGS.keys()
    for command, telling in TELLING.items():
        others = set().union(*(names[other] for other in names if other != command))
        assert set(telling) <= names[command] - others


@pytest.mark.parametrize(
    ("recipe", "command", "parsers"),
    [
        ("coco_base", "ituning train", [parse_evaluation, parse_build]),
        ("coco_test_base", "ituning evaluate", [parse_training, parse_build]),
    ],
)
def test_a_recipe_of_another_command_is_told(recipe: str, command: str, parsers: list[Callable[..., Any]]):
    for parse in parsers:
        with pytest.raises(ValueError, match=rf"is no setting: this looks like a file for `{command}`\.$"):
            parse(["--config", str(CONFIGS / f"{recipe}.yaml")])


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("storage: int8", ": this looks like a file for `ituning features build`."),
        ("learning_rate: 1e-4\nsplit: val", ": did you mean eval_split?"),  # this command's, with a mistake
    ],
)
def test_a_lone_mistake_is_weighed(tmp_path: Path, content: str, hint: str):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"is no setting{re.escape(hint)}$"):
        parse_training(["--config", str(tmp_path / "run.yaml")])
