"""The splits that names of files and folders state."""

from pathlib import Path

import pytest

from ituning_hf.data.splits import find_split_folders, held_out_split, split_of, split_of_folder

VAL = "val/annotations.json validation_set/a.jsonl captionsval.json captions_val2017.json x.dev.csv"
TEST = "testset.csv TEST.csv evaluation/captions.csv test_images/a.csv karpathy_test.json cocotest2015.json"
NONE = "latest.csv contest.csv interval.json carnival.jsonl retrieval.csv device.csv constrain.csv"
NONE += " train_val.json trainval.json test-dev2015.json val/trainval.csv my_test_photos/a.csv val/sub/a.csv"
NONE += " prétest.csv train.csv training_data/a.csv captions_train2017.json"


@pytest.mark.parametrize(("names", "expected"), [(VAL, "val"), (TEST, "test"), (NONE, None)])
def test_a_file_is_held_out_if_its_name_or_its_folders_says_so(names: str, expected: str | None):
    wrong = [name for name in names.split() if held_out_split(Path("photos", name)) != expected]
    assert wrong == []


def test_the_folder_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "val").mkdir()
    monkeypatch.chdir(tmp_path / "val")
    assert held_out_split(Path("captions.csv")) == "val"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train-00000-of-00002", "train"),
        ("cocoval2014", "val"),
        ("test/train-0", "train"),
        ("val/part/000", "val"),
        ("val/train_val", None),
        ("000", None),
    ],
)
def test_a_path_in_a_dataset(path: str, expected: str | None):
    assert split_of(path) == expected


def test_folders_of_splits(tmp_path: Path):
    names = {"Validation": "val", "val2017": "val", "train_set": "train", "TEST": "test", "misc": None}
    names |= {"my_val": None, "trainval": None}
    assert {name: split_of_folder(name) for name in names} == names
    for name in (*names, ".val"):
        (tmp_path / name).mkdir()
    (tmp_path / "val").touch()
    assert find_split_folders(tmp_path) == ["TEST", "Validation", "train_set", "val2017"]
