from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.csv_files import read_csv
from ituning_hf.data.records import CaptionedImage


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def captions(path: Path, split: str = "train", **options: Any) -> dict[str, tuple[str, ...]]:
    return {record.name: record.captions for record in read_csv(path, split, **options)}


def test_rows_of_the_same_image_are_joined(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions.csv",
        "id,file_name,caption,Split",
        '1,b.jpg," A dog,  running ",train',
        "",
        "2,a.jpg,a cat,train",
        '3,./b.jpg,"says ""hi""\nto all",train',
        "2,a.jpg,a cat,train",
    )
    assert read_csv(path, "train") == [
        CaptionedImage("b.jpg", ("A dog, running", 'says "hi" to all'), tmp_path / "b.jpg"),
        CaptionedImage("a.jpg", ("a cat", "a cat"), tmp_path / "a.jpg"),
    ]


def test_flickr8k_as_kaggle_has_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "captions.txt", "image,caption", "1.jpg,A child .", '1.jpg,"Up , up"', "2.jpg,A cat"
    )
    records = read_csv(path, "train", image_root=tmp_path / "Images", val_share=0.01)
    records += read_csv(path, "val", image_root=tmp_path / "Images", val_share=0.01)
    assert {record.source for record in records} == {tmp_path / "Images" / f"{i}.jpg" for i in (1, 2)}
    assert {record.captions for record in records} == {("A child .", "Up , up"), ("A cat",)}


def test_flickr30k_as_kaggle_has_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "results.csv",
        "image_name| comment_number| comment",
        '1.jpg| 0| Two "young", White males .',
        '1.jpg| 1| "Two" men; in a yard',
        "1.jpg| 4   A dog runs .",  # one row there lacks a separator
    )
    assert captions(path) == {"1.jpg": ('Two "young", White males .', '"Two" men; in a yard')}


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_any_usual_separator(tmp_path: Path, delimiter: str) -> None:
    lines = [delimiter.join(row) for row in [("Path", "Text", "n"), ("a.jpg", "a dog", "1")]]
    assert captions(write(tmp_path / "a.tsv", *lines)) == {"a.jpg": ("a dog",)}


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image,photo,caption,alt", "1,a.jpg,x,a dog")
    assert captions(path, image_column="photo", caption_column="alt") == {"a.jpg": ("a dog",)}
    with pytest.raises(
        ValueError, match=r"a\.csv has no column 'foto', as image_column says; it has 'image'"
    ):
        captions(path, image_column="foto")
    with pytest.raises(ValueError, match=r"has none of caption, .*with caption_column \('image', 'tags'\)"):
        captions(write(tmp_path / "b.csv", "image,tags", "a.jpg,x"))


def test_a_split_column(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{split},a" for i, split in enumerate(["train", "validation", "test", "train"])]
    path = write(tmp_path / "a.csv", "filename, split, caption", *rows)
    assert [list(captions(path, split)) for split in ("train", "val", "test")] == [
        ["0.jpg", "3.jpg"],
        ["1.jpg"],
        ["2.jpg"],
    ]


def test_without_one_val_is_taken_by_lot(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image,caption", *(f"{i}.jpg,a" for i in range(50) for _ in range(2)))
    train, val = captions(path, "train", val_share=0.3), captions(path, "val", val_share=0.3)
    assert not train.keys() & val.keys()
    assert len(train | val) == 50
    assert 5 <= len(val) <= 25
    assert captions(path, "val", seed=1, val_share=0.3) != val
    with pytest.raises(ValueError, match=r"a\.csv has no images of split 'test'; it has 'train' \(\d+\)"):
        captions(path, "test")


def test_whole_paths(tmp_path: Path) -> None:
    photo = tmp_path / "elsewhere" / "a.jpg"
    path = write(tmp_path / "a.csv", "image,caption", f"{photo},a")
    assert read_csv(path, "train", image_root="photos")[0].source == photo


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a.jpg,a,train", "line 3: 'image' must stay inside the folder, got '../a.jpg'"),
        (" ,a,train", "line 3: 'image' must be a file's name, got ''"),
        ("b.jpg,a dog, running,train", "line 3: 4 fields for 3 columns; put a field that holds the separat"),
        ("b.jpg,a,dev", "line 3: 'split' must be train, val or test, got 'dev'"),
        ("a.jpg,a,val", "line 3: 'a.jpg' is in two splits"),
        ("b.jpg,a", "'split' must be on every line or on none"),
        ('b.jpg,"a" dog,train', "line 3: ',' expected after '\"'"),
        ('b.jpg,"a dog,train', "line 3: unexpected end of data"),
        ("b.jpg,,train", r"empty captions for 1 of 2 images \(b\.jpg\)"),
    ],
)
def test_malformed_rows_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.csv", "image,caption,split", "a.jpg,a,train", line)
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_csv(path, "train")


def test_empty_and_other_files(tmp_path: Path) -> None:
    for content in (b"", b"\n\n"):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.csv is empty: its first line must name the columns$"):
            read_csv(tmp_path / "a.csv", "train")
    with pytest.raises(ValueError, match=r"b\.csv has no images of split 'train'; it has none$"):
        read_csv(write(tmp_path / "b.csv", "image,caption"), "train")
    (tmp_path / "c.csv").write_bytes("image,caption\na.jpg,été\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.csv is not UTF-8 text: "):
        read_csv(tmp_path / "c.csv", "train")


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage,caption\r\na.jpg,a dog\r\n")
    assert captions(tmp_path / "a.csv") == {"a.jpg": ("a dog",)}
