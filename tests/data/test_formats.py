"""Layouts that people have: each is read, or refused with what to change."""

import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ituning_hf.data.arguments import DatasetArguments
from ituning_hf.data.cells import parse_captions
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import MissingSplitError
from ituning_hf.data.scenes import read_scenes
from ituning_hf.utils.errors import UserError

from .conftest import WriteJson, captions, load, save_image

pytestmark = pytest.mark.usefixtures("datasets_cache")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- Captions in a cell


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a dog", "a \\"big\\" puppy"]', ("a dog", 'a "big" puppy')),
        ("['a dog', \"it's a puppy\"]", ("a dog", "it's a puppy")),
        ("[]", ()),
        ("[a dog]", ("[a dog]",)),
        ("[a dog] runs", ("[a dog] runs",)),
        ("a [red] dog", ("a [red] dog",)),
        ("[a dog's ball]", ("[a dog's ball]",)),
        ("('a dog', 'a puppy')", ("a dog", "a puppy")),
        ('[["a dog", null], ["", NaN, "a puppy"]]', ("a dog", "a puppy")),
        ("['a dog', nan, None]", ("a dog",)),
        ("array(['a dog', 'a puppy'], dtype=object)", ("a dog", "a puppy")),
        ("[array(['a dog'], dtype='<U5')]", ("a dog",)),
        ("['a dog' nan\n \"it's a puppy\"]", ("a dog", "it's a puppy")),
        ("[['a dog']\n ['a puppy']]", ("a dog", "a puppy")),
        ("[{'raw': 'a dog', 'tokens': ['a', 'dog']}]", ("a dog",)),
        ('[{"caption": "a dog"}, {"caption": null}]', ("a dog",)),
        (r"['a \d dog']", (r"a \d dog",)),
        *[(text, (text,)) for text in ("[2019]", "[...]", "{}", "[True]", "(1, 2)")],
    ],
)
def test_a_cell_may_hold_a_list_as_text(cell: str, expected: tuple[str, ...]) -> None:
    assert parse_captions(cell, "raw") == expected


@pytest.mark.parametrize(
    "cell",
    ["[b'a']", '["a", 2]', '[{"phrase": "a"}]', [1, 2], ["a", ["b", ["c"]]], ["a", {"id": 1}], [b"a"], 7, {}],
)
def test_other_values_are_refused(cell: object) -> None:
    with pytest.raises(UserError, match=r"^'raw' must be a string or a list of strings, got [\"'\[7{]"):
        parse_captions(cell, "raw")


def test_a_widespread_file_of_flickr30k(tmp_path: Path) -> None:
    line = '"[""a dog"", ""a puppy""]","[0, 1]",test,a.jpg,7'
    (image,) = load(write(tmp_path / "a.csv", "raw,sentids,split,filename,img_id", line), "test")
    assert (image.name, image.captions, image.image_id) == ("a.jpg", ("a dog", "a puppy"), 7)


def test_a_missing_caption_is_an_empty_one(tmp_path: Path) -> None:
    cells = ["NaN", "null", "[null]", '["a", {"raw": "b"}]']
    path = write(tmp_path / "a.jsonl", *(f'{{"image": "a.jpg", "caption": {cell}}}' for cell in cells))
    assert captions(path, "all") == {"a.jpg": ("a", "b")}


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        ("image,caption", ["a.jpg#0\tA dog, running", "a.jpg#1\ta puppy"]),  # Flickr8k.token.txt
        ("caption,image", ["A dog, running\ta.jpg#0", "a puppy\ta.jpg#1"]),
        ("caption,image", ['"A dog, running",a.jpg', "a puppy,a.jpg"]),
    ],
)
def test_a_file_without_a_header_line(tmp_path: Path, columns: str, lines: list[str]) -> None:
    path = write(tmp_path / "a.txt", *lines)
    with pytest.raises(UserError, match=r"no header line, the first .*'a\.jpg.*--columns image,caption"):
        load(path)
    expected = {"a.jpg": ("A dog, running", "a puppy")}
    assert captions(path, "all", columns=columns) == expected
    header = columns.replace(",", "\t" if "\t" in lines[0] else ",")
    assert captions(write(path, header, *lines), "all", columns=columns) == expected
    with pytest.raises(UserError, match="--columns cannot be used with a dataset that is not a CSV file"):
        load(write(tmp_path / "a.jsonl", "{}"), columns=columns)


def test_an_unclosed_quotation_mark_is_refused_at_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image,caption", "a.jpg,a", 'b.jpg,"a dog', *["c.jpg,a"] * 20_000)
    with pytest.raises(UserError, match=r"a\.csv, line 3: .*is a quotation mark missing"):
        load(path)


# --- Splits in the names of files


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_file_named_after_a_split_is_that_split(tmp_path: Path, write_json: WriteJson, name: str) -> None:
    ids = range(10)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in ids]
    annotations = [{"image_id": i, "caption": "a dog"} for i in ids]
    rows = [{"image": f"{i}.jpg", "caption": "a dog"} for i in ids]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / f"{name}.parquet")
    write(tmp_path / f"{name}.csv", "image,caption", *(f"{i}.jpg,a dog" for i in ids))
    write(tmp_path / f"{name}.jsonl", *map(json.dumps, rows))
    write_json({"images": images, "annotations": annotations}, f"{name}.json")
    write_json(rows, f"rows/{name}.json")
    other = "val" if name == "test" else "test"
    for path in (*(f"{name}.{kind}" for kind in ("json", "csv", "jsonl", "parquet")), f"rows/{name}.json"):
        for split in (name, "all"):
            assert [image.name for image in load(tmp_path / path, split)] == [f"{i}.jpg" for i in ids]
        with pytest.raises(MissingSplitError, match=rf"of split '{other}'; it has '{name}' \(10\)"):
            load(tmp_path / path, other)


def test_the_split_all_has_every_image(tmp_path: Path, write_json: WriteJson) -> None:
    for split in ("train", "val"):
        content = {"images": [{"id": split, "file_name": split}]}
        write_json(content | {"annotations": [{"image_id": split, "caption": "a"}]}, f"{split}.json")
    assert list(captions(tmp_path / "train.json", "all")) == ["train", "val"]
    path = write(tmp_path / "a.csv", "image,caption", *(f"{i}.jpg,a" for i in range(20)))
    assert list(captions(path, "all")) == [f"{i}.jpg" for i in range(20)]
    parts = {name: datasets.Dataset.from_dict({"image": [name], "text": ["a"]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert list(captions(tmp_path / "saved", "all")) == ["train", "test"]
    every = {image.name for image in read_scenes("all", 6, seed=2)}
    assert every == {
        image.name for part in ("train", "val", "test") for image in read_scenes(part, 2, seed=2)
    }


def test_splits_that_are_read_together_equal_those_read_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "image,caption", *(f"{i % 40}.jpg,a dog {i}" for i in range(100)))
    for i in range(40):
        (tmp_path / f"{i}.jpg").touch()
    together = DatasetArguments(dataset=str(path)).load_splits(["train", "val"], seed=1)
    alone = (load_captioned_images(path, split, seed=1) for split in ("train", "val"))
    assert [list(images) for images in together] == [list(images) for images in alone]


# --- Folders


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_metadata_of_a_folder(tmp_path: Path, kind: str) -> None:
    rows = [{"file_name": "sub/a.png", "prompt": "a dog"}, {"file_name": "b.png", "prompt": "a cat"}]
    for row in rows:
        save_image(tmp_path / "photos" / row["file_name"])
    path = tmp_path / "photos" / f"metadata.{kind}"
    match kind:
        case "jsonl":
            write(path, *map(json.dumps, rows))
        case "csv":
            write(path, "file_name,prompt", *(",".join(row.values()) for row in rows))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(
        UserError, match=r"no column named caption or .*--caption_column \('file_name', 'prompt"
    ):
        load(path.parent)
    images = load_captioned_images(path.parent, "all", caption_column="prompt")
    assert {image.name: image.captions for image in images} == {"sub/a.png": ("a dog",), "b.png": ("a cat",)}
    assert [image.load().size for image in images] == [(40, 34)] * 2


def test_the_images_of_a_folder_may_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "metadata.jsonl", '{"file_name": "a.png", "text": "a"}')
    photo = save_image(tmp_path / "photos" / "a.png")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 1 images of split .* are missing .* or give --image_root"
    ):
        load_captioned_images(tmp_path / "texts", "all")
    (image,) = load_captioned_images(tmp_path / "texts", "all", image_root=tmp_path / "photos")
    assert image.source == photo


def test_names_that_were_written_on_windows(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png")
    path = write(tmp_path / "a.jsonl", json.dumps({"image": "train\\a.png", "caption": "a"}))
    (image,) = load_captioned_images(path, "all")
    assert (image.name, image.source) == ("train/a.png", tmp_path / "train" / "a.png")
    save_image(tmp_path / "train\\a.png")  # some programs unpack archives of Windows like this
    (image,) = load_captioned_images(path, "all")
    assert image.source == tmp_path / "train\\a.png"
    photo = save_image(tmp_path / "images" / "sub" / "b.png")
    path = write(tmp_path / "b.jsonl", json.dumps({"image": "sub\\b.png", "caption": "b"}))
    assert load_captioned_images(path, "all")[0].source == photo
    path = write(tmp_path / "b.jsonl", json.dumps({"image": "C:\\photos\\a.png", "caption": "a"}))
    with pytest.raises(FileNotFoundError, match="these are paths of Windows: write them relative"):
        load_captioned_images(path, "all")


def test_metadata_under_another_name(tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "text": "a"}, {"file_name": "b.jpg", "captions": ["b", "c"]}]
    path = write(tmp_path / "metadata1000.jsonl", *map(json.dumps, rows))
    assert captions(path, "all") == {"a.jpg": ("a",), "b.jpg": ("b", "c")}


def test_a_caption_file_beside_each_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("dog.png", "sub/cat.JPE", "sub/deep/cow.png", "bare.png", ".hidden/a.png"):
        save_image(tmp_path / Path(name).with_suffix(".png")).rename(tmp_path / name)
    write(tmp_path / "dog.txt", "a dog", "", " two  words ")
    write(tmp_path / "sub" / "cat.caption", "a cat")
    write(tmp_path / "sub" / "deep" / "cow.txt", "a cow")
    write(tmp_path / ".hidden" / "a.txt", "a")
    expected = {"dog.png": ("a dog", "two words"), "sub/cat.JPE": ("a cat",), "sub/deep/cow.png": ("a cow",)}
    with caplog.at_level(logging.WARNING):
        images = load_captioned_images(tmp_path, "all")
    assert caplog.messages == [f"{tmp_path}: 1 of 4 images have no caption and are left out (bare.png)"]
    assert {image.name: image.captions for image in images} == expected
    assert all(image.load() for image in images)


def test_caption_files_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "Validation"):
        save_image(tmp_path / split / "a.png")
        write(tmp_path / split / "a.txt", f"of {split}")
    save_image(tmp_path / "misc" / "a.png")
    assert captions(tmp_path, "train") == {"train/a.png": ("of train",)}
    assert captions(tmp_path, "val") == {"Validation/a.png": ("of Validation",)}
    write(tmp_path / "misc" / "a.txt", "a")
    with pytest.raises(
        UserError, match=r"'Validation/a\.png' has a split and 'misc/a\.png' has none: .* folders"
    ):
        captions(tmp_path, "train")


def test_folders_without_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos has no images$"):
        load(tmp_path / "photos")
    for name in ("a.png", "a.txt"):
        write(tmp_path / "photos" / name)
        message = r'1 of 1 images have no caption \(a\.png\): .* dog\.txt .* \["a dog runs"\]\}\. Or give'
        with pytest.raises(UserError, match=message):
            load(tmp_path / "photos")
    write(tmp_path / "photos" / "a.caption", "a")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert captions(tmp_path / "photos") == {"a.png": ("a",)}
    assert caplog.messages == [f"{tmp_path}/photos: links to folders are not followed (1)"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_images_without_captions_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    texts = {f"{i}.png": ["a"] if i % 3 else [] for i in range(6)}
    match kind:
        case "csv":
            lines = [f"{name},{''.join(found)}" for name, found in texts.items()]
            path = write(tmp_path / "a.csv", "image,caption", "5.png,", *lines)
        case "jsonl":
            rows = [{"image": name, "captions": found} for name, found in texts.items()]
            path = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
        case _:
            path = tmp_path / "photos"
            for name, found in texts.items():
                write(path / name).with_suffix(".txt").write_text("".join(found))
    found = {split: captions(path, split) for split in ("all", "train", "val")}
    assert found["all"].keys() == {name for name, found in texts.items() if found}
    assert found["train"] | found["val"] == found["all"]
    assert "2 of 6 images have no caption and are left out (0.png, 3.png)" in caplog.text
    if kind != "txt":
        assert len(load(path, "all", require_captions=None)) == 6
        assert len(load(path, "all", require_captions=False)) == 4


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["image,year", "a.png,2019"]),
        ("a.csv", ["text,image,caption", "a,a.png,b"]),
        ("a.csv", ["a.png"]),
        ("a.tsv", ["7\ta.png#0\ta dog"]),
        ("a.jsonl", ['{"image": "a.png"}']),
        ("a.json", ['[{"image": "a.png", "year": 2019}]']),
        ("a.parquet", []),
    ],
)
def test_pictures_to_caption_need_no_caption_column(tmp_path: Path, name: str, lines: list[str]) -> None:
    path = write(tmp_path / name, *lines)
    if not lines:
        pq.write_table(pa.table({"image": ["a.png"]}), path)
    with pytest.raises(UserError, match=r"caption_column|there is no header line"):
        load(path, "all")
    assert captions(path, "all", require_captions=None) == {"a.png": ()}
    with pytest.raises(UserError, match="there is no column 'other'"):
        load(path, "all", require_captions=None, caption_column="other")


# --- What `ituning caption` writes


def test_written_captions_are_a_dataset(tmp_path: Path, write_json: WriteJson) -> None:
    rows = [
        {"image": "a.png", "captions": ["a dog"]},
        {"image": str(tmp_path / "b.png"), "captions": ["a", "b"]},
    ]
    for row in rows:
        save_image(tmp_path / row["image"])
    write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "tables").mkdir()
    for i, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "tables" / f"part-0000{i}-of-00002.parquet")
    write(tmp_path / "a.csv", "image,caption", "a.png,a dog", *(f"{tmp_path}/b.png,{x}" for x in "ab"))
    write_json(rows, "a.json")
    for name in ("a.jsonl", "a.parquet", "tables", "a.csv", "a.json"):
        images = load_captioned_images(tmp_path / name, "all", image_root=tmp_path)
        assert {image.name: list(image.captions) for image in images} == {
            row["image"]: row["captions"] for row in rows
        }
        assert all(image.load() for image in images)
