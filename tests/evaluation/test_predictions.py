"""Captions from a file: the three formats, and files that do not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from ituning_hf.cli import main
from ituning_hf.data.columns import CaptionedImage, CaptionedImages
from ituning_hf.evaluation.predictions import read_predictions
from ituning_hf.utils.errors import UserError

from .conftest import SEARCH

CAPTIONS = ["a dog runs", "two birds", "a man on a bike", "a tree", "grass", "a red dog", "a dog in a tree"]
IMAGES = [CaptionedImage(f"test/{i}.png", ("a",), Path(f"{i}.png")) for i in range(7)]
COCO = [{"image_id": f"test/{i}.png", "caption": text} for i, text in enumerate(CAPTIONS)]


def read(path: Path, images: list[CaptionedImage]) -> list[str]:
    return read_predictions(path, CaptionedImages.from_images(images))


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_output_of_ituning_caption(
    saved: Path, captioned: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its paths are relative to the working folder."""
    photos, captions = captioned
    monkeypatch.chdir(photos.parent)
    lines = tmp_path / "captions.jsonl"
    search = [f"--{name}={value}" for name, value in SEARCH.items()]
    assert main(["caption", photos.name, "--model", str(saved), *search, "--output", str(lines)]) == 0
    assert read(lines, IMAGES) == captions


@pytest.mark.parametrize("prefix", ["test/", "/data/photos/test/"])
def test_an_object_of_captions_by_file_name(tmp_path: Path, prefix: str):
    names = {f"{prefix}{i}.png": text for i, text in reversed(list(enumerate(CAPTIONS)))}
    assert read(write(tmp_path / "captions.json", names), IMAGES) == CAPTIONS


def test_a_file_name_that_is_not_utf_8(tmp_path: Path):
    images = [CaptionedImage("caf\udce9.png", ("a",), b"")]
    assert read(write(tmp_path / "captions.json", {"photos/caf\udce9.png": "a dog"}), images) == ["a dog"]


def test_a_line_may_contain_other_line_ends(tmp_path: Path):
    captions = [f"{text}\u2028{text}\x85" for text in CAPTIONS]
    entries = [{"image": f"test/{i}.png", "captions": [text]} for i, text in enumerate(captions)]
    lines = [json.dumps(entry, ensure_ascii=False) + "\r\n" for entry in entries]
    (tmp_path / "captions.jsonl").write_text("".join(lines), encoding="utf-8", newline="")
    assert read(tmp_path / "captions.jsonl", IMAGES) == captions


@pytest.mark.parametrize("in_results", [int, float, str, lambda value: f"{value}.0"])
@pytest.mark.parametrize("in_dataset", [int, str])
def test_ids_are_matched_by_value(
    tmp_path: Path, in_dataset: Callable[[int], Any], in_results: Callable[[int], Any]
):
    images = [replace(image, image_id=in_dataset(6 - i)) for i, image in enumerate(IMAGES)]
    results = [{"image_id": in_results(i), "caption": text} for i, text in enumerate(CAPTIONS)]
    assert read(write(tmp_path / "captions.json", results), images) == CAPTIONS[::-1]


@pytest.mark.parametrize("in_results", [int, str])
@pytest.mark.parametrize("in_dataset", [int, str])
def test_ids_of_more_than_64_bits_are_matched(tmp_path: Path, in_dataset: type, in_results: type):
    images = [replace(image, image_id=in_dataset(10**19 + i)) for i, image in enumerate(IMAGES)]
    results = [{"image_id": in_results(10**19 + i), "caption": text} for i, text in enumerate(CAPTIONS)]
    assert read(write(tmp_path / "captions.json", results), images) == CAPTIONS


def test_positions_are_not_ids(tmp_path: Path):
    positions = [{"image_id": i, "caption": text} for i, text in enumerate(CAPTIONS)]
    path = write(tmp_path / "captions.json", positions)
    with pytest.raises(UserError, match=r"\(test/0.png, .*; 7 captions of other images \(0, 1, 2, \.\.\.\)"):
        read(path, IMAGES)
    images = [replace(image, image_id=f"0{i}") for i, image in enumerate(IMAGES)]
    with pytest.raises(UserError, match=r"\(test/0.png with id 00, .* of other images \(0, 1, 2, \.\.\.\)"):
        read(path, images)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("key", ["image", "file_name", "path", "image_id"])
def test_tables(tmp_path: Path, key: str, suffix: str):
    captions = ['a "red"\ndog, running', *CAPTIONS[1:]]
    rows = [{"error": None, key: f"test/{i}.png", "caption": text} for i, text in enumerate(captions)][::-1]
    path = tmp_path / f"captions{suffix}"
    table = pandas.DataFrame(rows)
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    assert read(path, IMAGES) == captions


def test_several_captions_of_an_image(tmp_path: Path):
    """As `ituning caption --num_captions 2` writes them: a row for each caption, or a list."""
    rows = [{"image": f"test/{i}.png", "captions": [text, "a"]} for i, text in enumerate(CAPTIONS)]
    (tmp_path / "parts").mkdir()
    for i in range(2):
        pandas.DataFrame(rows[i::2]).to_parquet(tmp_path / "parts" / f"{i}.parquet")
    assert read(tmp_path / "parts", IMAGES) == CAPTIONS
    table = pandas.DataFrame(rows).explode("captions").rename(columns={"captions": "caption"})
    table.to_csv(tmp_path / "captions.csv", index=False)
    assert read(tmp_path / "captions.csv", IMAGES) == CAPTIONS
    table.iloc[[*range(14), 0]].to_csv(tmp_path / "captions.csv", index=False)
    with pytest.raises(UserError, match="1 images with several captions"):
        read(tmp_path / "captions.csv", IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COCO[:3], r"4 images without a caption \(test/3.png, .*, \.\.\.\)\. Each"),
        ([*COCO, COCO[2]], r"1 images with several captions \(test/2.png\)"),
        ([*COCO, {"image_id": 99, "caption": ""}], r"1 captions of other images \(99\)"),
        (
            {f"{i}.png": text for i, text in enumerate(CAPTIONS)},
            r"7 captions of other images \(0.png, 1.png,",
        ),
        ([{"id": 1}], r"json\[0\] is {'id': 1}, expected a list of"),
        ([{"image_id": 0.5, "caption": "a"}], r"json\[0\] is {'caption': 'a', 'image_id': 0.5}"),
        ([{"image_id": True, "caption": "a"}], r"json\[0\] is {'caption': 'a', 'image_id': True}"),
        ("a dog", r"holds 'a dog', expected a list of"),
        ({"images": [{"id": i} for i in range(1000)]}, r"json\[0\] is .{5,150}, expected"),
    ],
)
def test_captions_that_do_not_fit(tmp_path: Path, content: object, message: str):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "captions.json", content), IMAGES)


def test_a_bad_line_is_named(tmp_path: Path):
    (tmp_path / "captions.csv").write_text("image,caption\ntest/0.png,a dog,or two\n")
    with pytest.raises(UserError, match=r"captions\.csv, line 2: 3 fields for 2 columns"):
        read(tmp_path / "captions.csv", IMAGES)
    (tmp_path / "captions.jsonl").write_text(json.dumps(COCO[0]) + '\n{"image": "a.png"}')
    with pytest.raises(UserError, match=r"captions\.jsonl, line 2 is {'image': 'a\.png'}, expected"):
        read(tmp_path / "captions.jsonl", IMAGES)
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot read .*captions\.parquet: "):
        read(tmp_path / "captions.parquet", IMAGES)


@pytest.mark.parametrize("broken", [b"\xff\xfe", b'{"image": "0.png"', b"[" * 100_000])
def test_files_that_are_not_json(tmp_path: Path, broken: bytes):
    for name in ("captions.json", "captions.jsonl"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UserError, match=r"is not (JSON|UTF-8)"):
            read(tmp_path / name, IMAGES)
