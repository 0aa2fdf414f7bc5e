"""JSON that no parser should have to see: one kind of error, which every reader turns into its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.captioner.json_ituning import parse_json, read_json_object
from ituning_hf.features.spec import STORE_FILE, read_spec
from ituning_hf.hub.evaluation_results import EVALUATION_FILE, read_evaluations
from ituning_hf.hub.training_record import TRAINING_FILE, read_training_record
from ituning_hf.inference.files import read_config
from ituning_hf.training.checkpoints import STATE_FILE
from ituning_hf.training.state import read_state

HOSTILE = {
    "lists within lists": "[" * 10_000 + "]" * 10_000,
    "objects within objects": '{"x":' * 10_000 + "1" + "}" * 10_000,
    "a number of 5,000 digits": '{"step": ' + "9" * 5_000 + "}",
    "half a file": '{"step": ',
}
READERS: list[tuple[str, Callable[[Path], Any]]] = [
    (STORE_FILE, read_spec),
    ("config.json", read_config),
    (EVALUATION_FILE, read_evaluations),
    (STATE_FILE, read_state),
    (TRAINING_FILE, read_training_record),
    ("any.json", lambda folder: read_json_object(folder / "any.json")),
]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
def test_every_reader_says_which_file_it_is(tmp_path: Path, name: str, read: Callable, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name) as refused:
        read(tmp_path)
    assert not isinstance(refused.value, json.JSONDecodeError)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_there_is_one_kind_of_error(text: str):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def test_json_is_parsed_as_ever():
    assert parse_json('{"a": [1, 2.5, null, "é"]}') == {"a": [1, 2.5, None, "é"]}


def test_an_object_is_an_object(tmp_path: Path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"x\.json holds a list, expected an object"):
        read_json_object(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"x\.json is not JSON \('utf-8' codec"):
        read_json_object(tmp_path / "x.json")
