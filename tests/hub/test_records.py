"""`training.json` and `evaluation.json`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ituning_hf.hub.records import (
    EvaluationRecord,
    read_evaluation_records,
    read_training_record,
    write_evaluation_records,
    write_training_record,
)
from ituning_hf.utils.errors import UserError


def test_training_records_are_read_as_written(tmp_path: Path, training):
    assert read_training_record(tmp_path) is None
    for record in (training, replace(training, validation=None, dataset=None, dataset_on_hub=False, epoch=1)):
        write_training_record(tmp_path, record)
        assert read_training_record(tmp_path) == record


def test_evaluation_records_are_read_as_written(tmp_path: Path, evaluations):
    assert read_evaluation_records(tmp_path) == []
    write_evaluation_records(tmp_path, evaluations)
    assert read_evaluation_records(tmp_path) == evaluations


def test_the_evaluation_file_is_as_documented(tmp_path: Path):
    record = {
        "dataset": "COCO Karpathy",
        "split": "test",
        "num_images": 5000,
        "metrics": {"cider": 1.1},
        "command": "ituning evaluate --model org/x",
    }
    write_evaluation_records(tmp_path, [EvaluationRecord(**record)])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        "format_version": 1,
        "results": [record | {"subset": None, "tokenizer": None, "num_unreadable": 0}],
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"validation": null, "step": 3}', "null"])
@pytest.mark.parametrize("name", ["training.json", "evaluation.json"])
def test_another_file_is_refused(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    read = read_training_record if name == "training.json" else read_evaluation_records
    with pytest.raises(UserError, match=rf"{name} cannot be used \(.*: correct it or remove it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("training", {"versions": None}, "versions is None"),
        ("training", {"step": "many"}, "step is 'many'"),
        ("training", {"validation": {"step": 1, "scores": [], "num_scored": 0}}, "scores is []"),
        ("training", {"loss": 3}, "unexpected keyword argument 'loss'"),
        ("evaluation", {"num_images": 5.5}, "num_images is 5.5"),
        ("evaluation", {"metrics": {"cider": "high"}}, "metrics is {'cider': 'high'}"),
    ],
)
def test_edited_values_are_named(tmp_path: Path, training, evaluations, name: str, fields, message: str):
    write_training_record(tmp_path, training)
    write_evaluation_records(tmp_path, evaluations)
    path = tmp_path / f"{name}.json"
    content = json.loads(path.read_text())
    (content if name == "training" else content["results"][0]).update(fields)
    path.write_text(json.dumps(content))
    read = read_training_record if name == "training" else read_evaluation_records
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path)
