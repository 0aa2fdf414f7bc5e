"""CSV files, and the columns of tables."""

from pathlib import Path

import pytest

from ituning_hf.data.cells import CAPTION_COLUMNS
from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.tables import IMAGE_COLUMNS, find_column
from ituning_hf.utils.errors import UserError

from .conftest import captions, load


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_csv_rows_of_the_same_image_are_joined(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "captions.csv",
        "id,file_name,caption,Split",
        '1,b.jpg," A dog,  running ",train',
        "",
        "2,a.jpg,a cat,train",
        '3,./b.jpg,"says ""hi""\nto all",train',
        "2,a.jpg,a cat,train",
    )
    assert load(path) == [
        CaptionedImage("b.jpg", ("A dog, running", 'says "hi" to all'), tmp_path / "b.jpg"),
        CaptionedImage("a.jpg", ("a cat", "a cat"), tmp_path / "a.jpg"),
    ]


def test_kaggle_csv_files(tmp_path: Path) -> None:
    lines = ["image,caption", "1.jpg,A child .", '1.jpg,"Up , up"', "2.jpg,A cat"]
    path, root = write_lines(tmp_path / "captions.txt", *lines), tmp_path / "Images"  # Flickr8k
    images = [image for split in ("train", "val") for image in load(path, split, image_root=root)]
    assert {image.source for image in images} == {root / "1.jpg", root / "2.jpg"}
    assert {image.captions for image in images} == {("A child .", "Up , up"), ("A cat",)}
    path = write_lines(
        tmp_path / "results.csv",
        "image_name| comment_number| comment",
        '1.jpg| 0| Two "young", White males .',
        '1.jpg| 1| "Two" men; in a yard',
        "1.jpg| 4   A dog runs .",  # one row of that file lacks a delimiter
    )
    assert captions(path) == {"1.jpg": ('Two "young", White males .', '"Two" men; in a yard')}


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.txt"])
def test_csv_delimiters_byte_order_mark_and_line_ends(tmp_path: Path, delimiter: str, name: str) -> None:
    lines = [delimiter.join(row) for row in [("Path", "Text", "n"), ("a.jpg", "a dog", "1")]]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert captions(tmp_path / name) == {"a.jpg": ("a dog",)}


def test_csv_split_column_and_absolute_paths(tmp_path: Path) -> None:
    splits = ["train", "validation", "test", "train"]
    rows = [f"/photos/{i}.jpg,{split},a" for i, split in enumerate(splits)]
    path = write_lines(tmp_path / "a.csv", "filename, split, caption", *rows)
    found = {split: [str(image.source) for image in load(path, split)] for split in ("train", "val", "test")}
    assert found == {
        "train": ["/photos/0.jpg", "/photos/3.jpg"],
        "val": ["/photos/1.jpg"],
        "test": ["/photos/2.jpg"],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a.jpg,a,train", "line 3: 'image' must stay inside the folder, got '../a.jpg'"),
        (" ,a,train", "line 3: 'image' must be a file name, got ''"),
        ("b.jpg,a dog, running,train", "line 3: 4 fields for 3 columns: put fields that contain the delim"),
        ("b.jpg,a,x", "line 3: 'split' must be train, val or test, got 'x'"),
        ("a.jpg,a,val", "the entries of 'a.jpg' have different splits"),
        ("b.jpg,a", "'a.jpg' has a split and 'b.jpg' has none: state the split of all"),
        ('b.jpg,"a" dog,train', "line 3: ',' expected after '\"'"),
        ('b.jpg,"a dog,train', "line 3: unexpected end of data"),
    ],
)
def test_malformed_csv_rows_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "a.csv", "image,caption,split", "a.jpg,a,train", line)
    with pytest.raises(UserError, match=rf"a\.csv.*{message}"):
        load(path)


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["a", "b"], "c", r"there is no column 'c' \(--caption_column\); the columns are 'a', 'b'"),
        (["a"], None, r"there is no column named caption or .*: select one with --caption_column \('a'\)"),
        (["text", "caption"], None, "there are several such columns, 'text', 'caption': select one with"),
    ],
)
def test_missing_and_ambiguous_columns_are_refused(
    columns: list[str], given: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        find_column(columns, given, CAPTION_COLUMNS, "caption_column")
    usual = ["id", "File_Name", "sentence"]
    assert find_column(usual, None, IMAGE_COLUMNS, "image_column") == "File_Name"
    assert find_column(usual, None, CAPTION_COLUMNS, "caption_column") == "sentence"
    assert find_column(usual, "id", CAPTION_COLUMNS, "caption_column") == "id"


def test_files_of_spreadsheets_and_pandas(tmp_path: Path) -> None:
    names = ["Train", "RESTVAL", "Validation", "TEST"]
    rows = [f'{i};{i}.jpg;"a; b";{name};{10**18 + i}' for i, name in enumerate(names)]
    path = write_lines(tmp_path / "a.csv", ";image;caption;split;image_id", *rows)
    found = {split: load(path, split) for split in ("train", "restval", "val", "test")}
    assert {split: [image.image_id for image in images] for split, images in found.items()} == {
        "train": [10**18, 10**18 + 1],
        "restval": [10**18 + 1],
        "val": [10**18 + 2],
        "test": [10**18 + 3],
    }
    assert found["val"][0].captions == ("a; b",)


def test_quotation_marks_in_files_with_tabs(tmp_path: Path) -> None:
    quoted = ['a.jpg\t"two\tdogs"', 'b.jpg\t"a ""big"" dog\nruns"']
    path = write_lines(tmp_path / "a.tsv", "image\tcaption", *quoted)
    assert captions(path, "all") == {"a.jpg": ("two dogs",), "b.jpg": ('a "big" dog runs',)}
    unquoted = ['a.jpg\t"Stop" says a sign', 'b.jpg\t"Two dogs run', 'c.jpg\tA cat says "hi"']
    expected = dict(zip(["a.jpg", "b.jpg", "c.jpg"], [(line[6:],) for line in unquoted], strict=True))
    assert captions(write_lines(path, "image\tcaption", *unquoted), "all") == expected
    write_lines(path, "image\tcaption", 'a.jpg\t"Two dogs run', 'b.jpg\tA cat says hi "')
    with pytest.raises(UserError, match=r"a\.tsv, line 2: a quoted field has a tab and a line break"):
        captions(path, "all")
    for line in (
        quoted[1],
        'b.jpg\t"two\nlines"',
    ):  # quotation marks that enclose a field, and one that does not
        write_lines(path, "image\tcaption", unquoted[0], line)
        with pytest.raises(UserError, match=r"a\.tsv, line 2: .*is a quotation mark missing"):
            captions(path, "all")
    comma = write_lines(tmp_path / "a.csv", "image,caption", 'a.jpg,"two\t\nlines"')
    assert captions(comma, "all") == {"a.jpg": ("two lines",)}


def test_a_long_field(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", "image,caption,base64", f"a.jpg,{'dog ' * 50_000},{'x' * 200_000}")
    assert captions(path)["a.jpg"] == ("dog " * 49_999 + "dog",)
