import json
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.imagefolder import read_imagefolder
from ituning_hf.data.records import CaptionedImage


def write_metadata(folder: Path, *lines: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def numbered(count: int) -> list[dict[str, str]]:
    return [{"file_name": f"{i:03d}.jpg", "caption": f"picture {i}"} for i in range(count)]


def names(folder: Path, split: str, **options: Any) -> list[str]:
    return [record.name for record in read_imagefolder(folder, split, **options)]


def test_reads_caption_text_and_captions(tmp_path: Path) -> None:
    write_metadata(
        tmp_path / "train",
        {"file_name": "a.jpg", "caption": " a  dog\n"},
        "",
        {"file_name": "sub/b.jpg", "text": "a\u2028cat", "other": 1},
        {"file_name": "c.jpg", "captions": ["a", " ", "b"]},
    )
    folder = tmp_path / "train"
    assert read_imagefolder(tmp_path, "train") == [
        CaptionedImage("train/a.jpg", ("a dog",), folder / "a.jpg"),
        CaptionedImage("train/sub/b.jpg", ("a cat",), folder / "sub" / "b.jpg"),
        CaptionedImage("train/c.jpg", ("a", "b"), folder / "c.jpg"),
    ]


def test_joins_lines_of_the_same_image(tmp_path: Path) -> None:
    lines = [("a.jpg", "one"), ("b.jpg", "two"), ("./a.jpg", "three")]
    write_metadata(tmp_path / "val", *({"file_name": name, "caption": text} for name, text in lines))
    assert [(record.name, record.captions) for record in read_imagefolder(tmp_path, "val")] == [
        ("val/a.jpg", ("one", "three")),
        ("val/b.jpg", ("two",)),
    ]


@pytest.mark.parametrize("val_name", ["val", "validation"])
def test_split_folders(tmp_path: Path, val_name: str) -> None:
    for name in ("train", val_name, "test"):
        write_metadata(tmp_path / name, {"file_name": "a.jpg", "caption": f"of {name}"})
    captions = {split: read_imagefolder(tmp_path, split)[0].captions for split in ("train", "val", "test")}
    assert captions == {"train": ("of train",), "val": (f"of {val_name}",), "test": ("of test",)}


def test_split_column(tmp_path: Path) -> None:
    splits = ["train", "validation", "train", "test"]
    rows = [{**row, "split": split} for row, split in zip(numbered(4), splits, strict=True)]
    write_metadata(tmp_path, *rows)
    assert names(tmp_path, "train") == ["000.jpg", "002.jpg"]
    assert names(tmp_path, "val") == ["001.jpg"]
    assert names(tmp_path, "test") == ["003.jpg"]


def test_splits_off_a_val_part_by_lot(tmp_path: Path) -> None:
    write_metadata(tmp_path, *numbered(300))
    train, val = names(tmp_path, "train"), names(tmp_path, "val")
    assert sorted(train + val) == [row["file_name"] for row in numbered(300)]
    assert (train, val) == (sorted(train), sorted(val))  # both in the file's order
    assert 15 <= len(val) <= 45
    assert val[:4] == VAL_OF_SEED_0  # the same on every machine and in every version
    assert names(tmp_path, "val", seed=1) != val
    assert 120 <= len(names(tmp_path, "val", val_share=0.5)) <= 180


VAL_OF_SEED_0 = ["010.jpg", "015.jpg", "022.jpg", "026.jpg"]


def test_more_images_leave_the_others_on_their_side(tmp_path: Path) -> None:
    few = write_metadata(tmp_path / "few", *numbered(100))
    many = write_metadata(tmp_path / "many", *numbered(200)[::-1])
    assert set(names(few, "val")) == {name for name in names(many, "val") if name < "100.jpg"}


@pytest.mark.parametrize("val_share", [1e-9, 1 - 1e-9])
def test_neither_side_is_left_empty(tmp_path: Path, val_share: float) -> None:
    write_metadata(tmp_path, *numbered(5))
    sizes = [len(names(tmp_path, split, val_share=val_share)) for split in ("train", "val")]
    assert sizes == ([4, 1] if val_share < 0.5 else [1, 4])


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_metadata(tmp_path, *numbered(1))
    assert names(tmp_path, "train") == ["000.jpg"]
    with pytest.raises(ValueError, match=r"has no images of split 'val'; it has 'train' \(1\)"):
        read_imagefolder(tmp_path, "val")


def test_an_absent_split_lists_those_present(tmp_path: Path) -> None:
    write_metadata(tmp_path / "train", *numbered(3))
    with pytest.raises(ValueError, match=r"has no images of split 'test'; it has 'train' \(3\): give one"):
        read_imagefolder(tmp_path, "test")
    with pytest.raises(ValueError, match=r"has no images of split 'train'; it has none$"):
        read_imagefolder(write_metadata(tmp_path / "empty"), "train")


def test_files_that_may_be_meant_are_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").touch()
    with pytest.raises(FileNotFoundError, match=r"\. Or did you mean .*/dataset_coco\.json\?$"):
        read_imagefolder(tmp_path, "train")
    (tmp_path / "captions.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"mean .*/captions\.csv or .*/dataset_coco\.json\?$"):
        read_imagefolder(tmp_path, "train")
    for number in range(2):
        (tmp_path / f"{number}.json").touch()  # an annotation for each image, perhaps
    with pytest.raises(FileNotFoundError, match=r"\[\"a dog runs\"\]\}$"):
        read_imagefolder(tmp_path, "train")


GOOD = {"file_name": "a.jpg", "caption": "a"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON"),
        ("[1, 2]", r"expected a JSON object, got '\[1, 2\]'"),
        ({"caption": "a"}, "'file_name' must be a file's name, got None"),
        ({"file_name": "", "caption": "a"}, "'file_name' must be a file's name, got ''"),
        ({"file_name": "/etc/a.jpg", "caption": "a"}, "must stay inside the folder, got '/etc/a.jpg'"),
        ({"file_name": "C:\\a.jpg", "caption": "a"}, "must stay inside the folder"),
        ({"file_name": "b/../../a.jpg", "caption": "a"}, "must stay inside the folder"),
        ({"file_name": "..\\a.jpg", "caption": "a"}, "must stay inside the folder"),
        ({"file_name": "b.jpg"}, "give one of 'caption', 'text' and 'captions', got none"),
        ({**GOOD, "captions": ["b"]}, "'captions', got 'caption' and 'captions'"),
        ({"file_name": "b.jpg", "caption": ["a"]}, r"'caption' must be a string, got \['a'\]"),
        ({"file_name": "b.jpg", "captions": "a"}, "'captions' must be a list of strings, got 'a'"),
        ({"file_name": "b.jpg", "captions": ["a", 1]}, "'captions' must be a list of strings"),
        ({**GOOD, "split": "dev"}, "'split' must be train, val or test, got 'dev'"),
        ({**GOOD, "split": ["val"]}, r"'split' must be train, val or test, got \['val'\]"),
        ({**GOOD, "split": "val"}, "'a.jpg' is in two splits"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path: Path, line: Any, message: str) -> None:
    write_metadata(tmp_path, GOOD, "", line)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, line 3: .*{message}"):
        read_imagefolder(tmp_path, "train")


def test_the_split_column_must_be_whole(tmp_path: Path) -> None:
    write_metadata(tmp_path, GOOD, {"file_name": "b.jpg", "caption": "b", "split": "val"})
    with pytest.raises(ValueError, match="'split' must be on every line or on none"):
        read_imagefolder(tmp_path, "train")


def test_reads_a_byte_order_mark_and_refuses_other_encodings(tmp_path: Path) -> None:
    path = write_metadata(tmp_path / "train", GOOD) / "metadata.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert names(tmp_path, "train") == ["train/a.jpg"]
    path.write_bytes('{"file_name": "é.jpg"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.jsonl is not UTF-8 text"):
        read_imagefolder(tmp_path, "train")


def test_metadata_must_be_in_one_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no metadata\.jsonl, nor have its split folders"):
        read_imagefolder(tmp_path, "train")
    write_metadata(tmp_path / "val", GOOD)
    write_metadata(tmp_path / "validation", GOOD)
    with pytest.raises(ValueError, match=r"metadata\.jsonl in val, validation: which one counts"):
        read_imagefolder(tmp_path, "train")


def test_metadata_in_the_folder_and_below_is_ambiguous(tmp_path: Path) -> None:
    write_metadata(tmp_path, GOOD)
    write_metadata(tmp_path / "train", GOOD)
    with pytest.raises(ValueError, match=r"metadata\.jsonl in \., train: which one counts is unclear"):
        read_imagefolder(tmp_path, "train")


def test_images_without_captions_make_one_error(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.jpg", "captions": [" "] * i} for i in range(2)]
    write_metadata(tmp_path / "train", *rows, GOOD)
    with pytest.raises(ValueError, match=r"empty captions for 2 of 3 images \(train/0\.jpg, train/1\.jpg\);"):
        read_imagefolder(tmp_path, "train")


@pytest.mark.parametrize("val_share", [0, 1, -0.1])
def test_val_share_is_a_share(tmp_path: Path, val_share: float) -> None:
    write_metadata(tmp_path, GOOD)
    with pytest.raises(ValueError, match=f"val_share must lie between 0 and 1, got {val_share}"):
        read_imagefolder(tmp_path, "train", val_share=val_share)
