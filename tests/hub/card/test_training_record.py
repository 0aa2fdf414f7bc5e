"""`training.json`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ituning_hf.hub.training_record import read_training_record, write_training_record


def test_a_round_trip(tmp_path: Path, training):
    assert read_training_record(tmp_path) is None
    for record in (training, replace(training, validation=None, dataset=None, dataset_on_hub=False)):
        write_training_record(tmp_path, record)
        assert read_training_record(tmp_path) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"validation": null, "step": 3}'])
def test_another_file_is_refused(tmp_path: Path, text: str):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=r"training\.json is no record of a training \(.*copy it again"):
        read_training_record(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"versions": None}, "versions is None, expected dict"),
        ({"step": "many"}, "step is 'many', expected <class 'int'>"),
        ({"dataset": 3}, "dataset is 3, expected str | None"),
        ({"validation": {"step": 1, "scores": {}, "num_scored": 0}}, "scores is {}, expected numbers"),
        ({"validation": {"step": 1, "scores": {"loss": None}, "num_scored": 0}}, "scores is {'loss': None}"),
    ],
)
def test_values_that_no_card_can_show_are_refused(tmp_path: Path, training, fields, message: str):
    write_training_record(tmp_path, training)
    path = tmp_path / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_training_record(tmp_path)
