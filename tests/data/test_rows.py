from pathlib import Path

import pytest

from ituning_hf.data.rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, find_column, join_rows, parse_file_name


def test_joins_captions_in_the_order_of_the_first_rows() -> None:
    given = [("b", "one"), ("a", "two"), ("b", "three"), ("b", "one")]
    rows = [
        (f"line {i}", Row(name, (caption,), Path("photos") / name)) for i, (name, caption) in enumerate(given)
    ]
    assert join_rows(rows) == [
        Row("b", ("one", "three", "one"), Path("photos/b")),
        Row("a", ("two",), Path("photos/a")),
    ]


def test_an_image_is_in_one_split() -> None:
    rows = [(f"line {i}", Row("a", ("a",), Path("a"), split)) for i, split in enumerate(["train", "val"])]
    with pytest.raises(ValueError, match=r"^line 1: 'a' is in two splits$"):
        join_rows(rows)


@pytest.mark.parametrize("name", ["../a.jpg", "b/../../a.jpg", "..\\a.jpg"])
def test_names_stay_inside_the_folder(name: str) -> None:
    for absolute in (False, True):
        with pytest.raises(ValueError, match=r"^line 1: 'image' must stay inside the folder, got "):
            parse_file_name(name, "line 1", "image", absolute=absolute)


@pytest.mark.parametrize("name", ["/photos/a.jpg", "C:\\photos\\a.jpg"])
def test_whole_paths_are_taken_where_allowed(name: str) -> None:
    assert parse_file_name(name, "line 1", "image", absolute=True) == name
    with pytest.raises(ValueError, match="must stay inside"):
        parse_file_name(name, "line 1", "image")


def test_names_that_are_none() -> None:
    for value in (None, "", 7):
        with pytest.raises(ValueError, match=f"^line 1: 'image' must be a file's name, got {value!r}$"):
            parse_file_name(value, "line 1", "image")
    with pytest.raises(ValueError, match=r"^line 1: 'image' is a URL, 'https://e\.org/a\.jpg': download"):
        parse_file_name("https://e.org/a.jpg", "line 1", "image")


def test_columns_are_found_by_their_usual_names() -> None:
    columns = ["id", "File_Name", "sentence"]
    assert find_column(columns, None, IMAGE_COLUMNS, "image_column", "table") == "File_Name"
    assert find_column(columns, None, CAPTION_COLUMNS, "caption_column", "table") == "sentence"
    assert find_column(columns, "id", CAPTION_COLUMNS, "caption_column", "table") == "id"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["a", "b"], "c", "table has no column 'c', as caption_column says; it has 'a', 'b'"),
        (["a"], None, r"table has none of caption, .*comment: name one of .* with caption_column \('a'\)"),
        (
            ["text", "caption"],
            None,
            r"table has the columns 'text', 'caption': name one of its columns with caption_column",
        ),
    ],
)
def test_columns_that_do_not_tell(columns: list[str], given: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        find_column(columns, given, CAPTION_COLUMNS, "caption_column", "table")
