import json
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.utils.errors import UserError

from .conftest import captions, load


def write_metadata(folder: Path, *lines: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def test_reads_caption_text_and_captions_and_joins_lines(tmp_path: Path) -> None:
    folder = write_metadata(
        tmp_path / "train",
        {"file_name": "a.jpg", "caption": " a  dog\n"},
        "",
        {"file_name": "sub/b.jpg", "text": "a\u2028cat", "other": 1},
        {"file_name": "c.jpg", "captions": ["a", " ", "b"]},
        {"file_name": "./a.jpg", "caption": "a dog"},
    )
    assert load(tmp_path) == [
        CaptionedImage("train/a.jpg", ("a dog", "a dog"), folder / "a.jpg"),
        CaptionedImage("train/sub/b.jpg", ("a cat",), folder / "sub" / "b.jpg"),
        CaptionedImage("train/c.jpg", ("a", "b"), folder / "c.jpg"),
    ]


@pytest.mark.parametrize("val_name", ["val", "validation"])
def test_splits_are_folders_or_stated_in_each_line(tmp_path: Path, val_name: str) -> None:
    names = {"train": "train", "val": val_name, "test": "test"}
    for name in names.values():
        write_metadata(tmp_path / "folders" / name, {"file_name": "a.jpg", "caption": f"of {name}"})
    lines = [{"file_name": f"{name}.jpg", "caption": "a", "split": name} for name in names.values()]
    write_metadata(tmp_path / "lines", *lines)
    for split, name in names.items():
        assert captions(tmp_path / "folders", split) == {f"{name}/a.jpg": (f"of {name}",)}
        assert captions(tmp_path / "lines", split) == {f"{name}.jpg": ("a",)}


def test_metadata_of_all_splits_names_their_folders(tmp_path: Path) -> None:
    names = ["train/a.jpg", "test/sub/b.jpg"]
    (tmp_path / "train").mkdir()
    write_metadata(tmp_path, *({"file_name": name, "caption": "a"} for name in names))
    assert [list(captions(tmp_path, split)) for split in ("train", "test", "all")] == [
        [names[0]],
        [names[1]],
        names,
    ]
    write_metadata(tmp_path, *({"file_name": name, "caption": "a", "split": "val"} for name in names))
    assert list(captions(tmp_path, "val")) == names
    for others in (["train/b.jpg"], ["misc/b.jpg", "test/c.jpg"]):  # no folders of splits: "val" is drawn
        write_metadata(tmp_path, *({"file_name": name, "caption": "a"} for name in [names[0], *others]))
        assert sorted([*captions(tmp_path, "train"), *captions(tmp_path, "val")]) == sorted(
            [names[0], *others]
        )


GOOD = {"file_name": "a.jpg", "caption": "a"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ({"caption": "a"}, "no column named file_name or .*: select one with --image_column"),
        ({"file_name": 7, "caption": "a"}, "'file_name' must be a file name, got 7"),
        ({"file_name": "/etc/a.jpg", "caption": "a"}, "must stay inside the folder, got '/etc/a.jpg'"),
        ({"file_name": "b.jpg"}, r"no column named caption or .*: .* with --caption_column \('file_name'\)"),
        ({**GOOD, "captions": ["b"]}, "several such columns, 'caption', 'captions': select one"),
        ({"file_name": "b.jpg", "captions": ["a", 1]}, "'captions' must be a string or a list of strings"),
        ({**GOOD, "split": "x"}, "'split' must be train, val or test, got 'x'"),
        ({**GOOD, "split": ["val"]}, r"'split' must be train, val or test, got \['val'\]"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path: Path, line: Any, message: str) -> None:
    write_metadata(tmp_path, GOOD, "", line)
    with pytest.raises(UserError, match=rf"metadata\.jsonl, line 3.*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("folders", [("val", "validation"), (".", "train")])
def test_metadata_in_several_folders_is_refused(tmp_path: Path, folders: tuple[str, str]) -> None:
    for folder in folders:
        write_metadata(tmp_path / folder, GOOD)
    with pytest.raises(UserError, match=r"metadata\.jsonl, \w+/metadata\.jsonl: keep one per split"):
        load(tmp_path)
