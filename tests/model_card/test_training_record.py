"""`training.json`."""

from dataclasses import replace
from pathlib import Path

import pytest

from ituning_hf.model_card import read_training_record, write_training_record


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
