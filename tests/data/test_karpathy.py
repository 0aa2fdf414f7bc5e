import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.karpathy import read_karpathy
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage, check_images_exist
from ituning_hf.data.splits import MissingSplitError


def entry(filename: str, split: str, *captions: str, **extra: Any) -> dict[str, Any]:
    sentences = [{"raw": caption, "tokens": caption.split()} for caption in captions]
    return {"filename": filename, "split": split, "sentences": sentences, **extra}


def test_reads_names_captions_and_paths(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json([entry("a.jpg", "val", " A dog .\n", "two\ndogs", "  "), entry("b.jpg", "test", "a")])
    assert read_karpathy(path, tmp_path / "images", "val") == [
        CaptionedImage("a.jpg", ("A dog .", "two dogs"), tmp_path / "images" / "a.jpg")
    ]


def test_train_takes_restval_in_the_file_s_order(write_json: Callable[..., Path], tmp_path: Path) -> None:
    splits = ["restval", "val", "train", "test", "restval"]
    path = write_json([entry(f"{i}.jpg", split, "a") for i, split in enumerate(splits)])
    names = {
        split: [record.name for record in read_karpathy(path, tmp_path, split)]
        for split in ("train", "val", "test", "restval")
    }
    assert names == {
        "train": ["0.jpg", "2.jpg", "4.jpg"],
        "val": ["1.jpg"],
        "test": ["3.jpg"],
        "restval": ["0.jpg", "4.jpg"],
    }


def test_filepath_is_followed_where_it_exists(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json(
        [
            entry("a.jpg", "val", "a", filepath="val2014"),
            entry("b.jpg", "train", "a", filepath="train2014"),
            entry("c.jpg", "val", "a", filepath=""),
        ]
    )
    names = ["val2014/a.jpg", "train2014/b.jpg", "c.jpg"]

    def sources() -> list[Path]:
        (a, c), (b,) = (read_karpathy(str(path), str(tmp_path), split) for split in ("val", "train"))
        assert [record.name for record in (a, b, c)] == names
        return [record.source for record in (a, b, c)]

    assert sources() == [tmp_path / name for name in names]  # nothing is there: where it must come
    (tmp_path / "b.jpg").touch()  # the folders were merged into one
    assert sources() == [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"]
    (tmp_path / "val2014").mkdir()  # a half download: the other folder is missing, not merged
    assert sources() == [tmp_path / name for name in names]


def test_a_folder_that_is_not_there_is_named(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json([entry("a.jpg", "train", "a", filepath="train2014")])
    (tmp_path / "train2017").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        load_captioned_images(path, "train")
    assert str(caught.value) == (
        f"1 of the split's 1 images are missing ({tmp_path}/train2014/a.jpg): unpack them there, give "
        "--image_root, the folder that their names are relative to, or mend the names. Missing are 1 of 1 in "
        f"{tmp_path}/train2014 (there is no train2014/ in {tmp_path})"
    )


def test_images_are_numbered(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json(
        [
            entry("a.jpg", "val", "a", cocoid=391895, imgid=0),
            entry("b.jpg", "val", "a", imgid=1),
            entry("c.jpg", "val", "a"),
            entry("d.jpg", "test", "a", imgid=1),
        ]
    )
    assert [record.image_id for record in read_karpathy(path, tmp_path, "val")] == [391895, 1, None]


def test_doubled_images_are_refused(write_json: Callable[..., Path], tmp_path: Path) -> None:
    entries = [entry(f"{i}.jpg", "val", "a", imgid=i // 2) for i in range(3)]
    with pytest.raises(
        ValueError, match=r"dataset\.json: 1 ids of images stand there more than once \(0\); "
    ):
        read_karpathy(write_json(entries), tmp_path, "val")
    entries = [entry("a.jpg", "val", "a"), entry("a.jpg", "val", "b"), entry("a.jpg", "test", "c")]
    with pytest.raises(
        ValueError, match=r"1 names of images stand there more than once \(a\.jpg\); leave each"
    ):
        read_karpathy(write_json(entries), tmp_path, "val")
    assert len(read_karpathy(write_json(entries), tmp_path, "test")) == 1


def test_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text("{oops")
    with pytest.raises(ValueError, match=r"dataset\.json is not a JSON file: Expecting property name"):
        read_karpathy(path, tmp_path, "train")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"dataset\.json is not a JSON file: .*utf-8"):
        read_karpathy(path, tmp_path, "train")
    for content in ([], {"annotations": []}, {"images": {"a": 1}}):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is not a Karpathy JSON file: it has no list named 'images'"):
            read_karpathy(path, tmp_path, "train")


@pytest.mark.parametrize(
    "bad",
    [
        {"split": "train", "sentences": []},
        {"split": "train", "filename": "a.jpg"},
        {"split": "train", "filename": "a.jpg", "sentences": [{"tokens": ["a"]}]},
        {"split": "train", "filename": "a.jpg", "sentences": ["a"]},
        {"split": "train", "filename": "a.jpg", "sentences": [{"raw": None}]},
        {"split": "train", "filename": 7, "sentences": [{"raw": "a"}]},
    ],
)
def test_malformed_entries_are_named(write_json: Callable[..., Path], tmp_path: Path, bad: Any) -> None:
    path = write_json([entry("a.jpg", "train", "a"), bad])
    message = r"dataset\.json: images\[1\] is not a Karpathy entry: it needs 'filename' and 'sentences'"
    with pytest.raises(ValueError, match=message):
        read_karpathy(path, tmp_path, "train")


@pytest.mark.parametrize("bad", ["a.jpg", {"filename": "a.jpg"}, {"split": ["train"]}])
def test_every_entry_has_a_split(write_json: Callable[..., Path], tmp_path: Path, bad: Any) -> None:
    path = write_json([entry("a.jpg", "train", "a"), bad])
    with pytest.raises(ValueError, match=r"dataset\.json: images\[1\] has no 'split'$"):
        read_karpathy(path, tmp_path, "train")


def test_an_absent_split_lists_those_present(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json([entry("a.jpg", "train", "a"), entry("b.jpg", "val", "a"), entry("c.jpg", "val", "a")])
    with pytest.raises(
        MissingSplitError,
        match=r"no images of split 'dev'; it has 'train' \(1\), 'val' \(2\): give one of those",
    ):
        read_karpathy(path, tmp_path, "dev")
    with pytest.raises(MissingSplitError, match=r"no images of split 'train'; it has none$"):
        read_karpathy(write_json([]), tmp_path, "train")


def test_images_without_captions_make_one_error(write_json: Callable[..., Path], tmp_path: Path) -> None:
    entries = [entry(f"{i}.jpg", "train", *([" "] * i)) for i in range(4)]
    path = write_json([*entries, entry("good.jpg", "train", "a")])
    message = r"dataset\.json: empty captions for 4 of 5 images \(0\.jpg, 1\.jpg, 2\.jpg, \.\.\.\); write"
    with pytest.raises(ValueError, match=message):
        read_karpathy(path, tmp_path, "train")


def test_reads_real_photographs(flickr8k_mini: Path) -> None:
    path = flickr8k_mini / "dataset_flickr8k_mini.json"
    train, val = (read_karpathy(path, flickr8k_mini / "images", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (762, 113)
    assert {len(record.captions) for record in train + val} == {5}
    assert not {record.name for record in train} & {record.name for record in val}
    check_images_exist(train + val)
    assert train[0].name == "1000268201_693b08cb0e.jpg"
    assert train[0].captions[1] == "A girl going into a wooden building ."
    assert train[0].load().mode == "RGB"
