"""`training.json` and `evaluation.json`."""

from dataclasses import replace
from pathlib import Path

import pytest

from ituning_hf.hub.records import (
    read_evaluation_records,
    read_training_record,
    write_evaluation_records,
    write_training_record,
)
from ituning_hf.utils.errors import UserError


def test_records_are_read_as_written(tmp_path: Path, training, evaluations):
    assert read_training_record(tmp_path) is None
    for record in (training, replace(training, validation=None, dataset=None, dataset_on_hub=False, epoch=1)):
        write_training_record(tmp_path, record)
        assert read_training_record(tmp_path) == record
    assert read_evaluation_records(tmp_path) == []
    write_evaluation_records(tmp_path, evaluations)
    assert read_evaluation_records(tmp_path) == evaluations


def test_values_of_another_type_are_refused(tmp_path: Path, training, evaluations):
    write_training_record(tmp_path, replace(training, dataset=1))
    with pytest.raises(UserError, match=r"training\.json cannot be used \('dataset' is 1\)"):
        read_training_record(tmp_path)
    write_evaluation_records(tmp_path, [replace(evaluations[0], metrics={"CIDEr": "high"})])
    with pytest.raises(UserError, match=r"evaluation\.json cannot be used \('metrics' is"):
        read_evaluation_records(tmp_path)


@pytest.mark.parametrize("text", ["", "[3]", "{", '{"validation": null, "step": 3}', "null"])
@pytest.mark.parametrize("name", ["training.json", "evaluation.json"])
def test_another_file_is_refused(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    read = read_training_record if name == "training.json" else read_evaluation_records
    with pytest.raises(
        UserError, match=rf"{name} (cannot be used \(.*: correct it or remove it|is not JSON)"
    ):
        read(tmp_path)
