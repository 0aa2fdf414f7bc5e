import json
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.coco import is_coco, read_coco_captions
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.splits import MissingSplitError

from .conftest import save_image


def write_coco(path: Path, images: dict[int, str], captions: list[tuple[int, str]]) -> Path:
    content = {
        "info": {},
        "images": [{"id": image_id, "file_name": name} for image_id, name in images.items()],
        "annotations": [
            {"id": i, "image_id": image_id, "caption": text} for i, (image_id, text) in enumerate(captions)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Fifty images in one file that says nothing of splits."""
    for i in range(50):
        save_image(tmp_path / f"{i:02d}.png")
    return write_coco(
        tmp_path / "captions.json",
        {100 + i: f"{i:02d}.png" for i in range(50)},
        [(100 + i, "a") for i in range(50)],
    )


def names(path: Path, split: str, **options: Any) -> list[str]:
    return [record.name for record in read_coco_captions(path, None, split, **options)]


@pytest.fixture
def coco2017(tmp_path: Path) -> Path:
    """COCO's own layout: annotations/ beside train2017/ and val2017/."""
    for part, first in (("train", 1), ("val", 5)):
        images = {i: f"{i:012d}.jpg" for i in range(first, first + 3)}
        for name in images.values():
            save_image(tmp_path / f"{part}2017" / name)
        captions = [(first + 1, " two\n dogs "), (first, "a cat"), (first + 1, "dogs"), (first + 2, "a")]
        write_coco(tmp_path / "annotations" / f"captions_{part}2017.json", images, captions)
    return tmp_path / "annotations" / "captions_train2017.json"


def test_reads_the_captions_of_each_image(coco2017: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train2017"
    assert read_coco_captions(coco2017, None, "train") == [
        CaptionedImage("000000000001.jpg", ("a cat",), folder / "000000000001.jpg", image_id=1),
        CaptionedImage("000000000002.jpg", ("two dogs", "dogs"), folder / "000000000002.jpg", image_id=2),
        CaptionedImage("000000000003.jpg", ("a",), folder / "000000000003.jpg", image_id=3),
    ]


def test_the_file_beside_is_val(coco2017: Path, tmp_path: Path) -> None:
    records = read_coco_captions(coco2017, None, "val", seed=3, val_share=0.9)
    assert [record.source for record in records] == [
        tmp_path / "val2017" / f"{i:012d}.jpg" for i in (5, 6, 7)
    ]
    with pytest.raises(
        MissingSplitError,
        match=r"no images of split 'test'; it has 'train', and captions_val2017\.json 'val'$",
    ):
        read_coco_captions(coco2017, None, "test")


def test_a_file_that_is_val_by_its_name_is_nothing_else(coco2017: Path) -> None:
    alone = coco2017.with_name("captions_val2017.json")
    coco2017.unlink()
    assert [record.image_id for record in read_coco_captions(alone, None, "val")] == [5, 6, 7]
    with pytest.raises(ValueError, match=r"is a 'val' split by its name, and has no images of split 'train'"):
        read_coco_captions(alone, None, "train")


def test_without_a_file_beside_val_is_taken_by_lot(numbered: Path) -> None:
    train, val = names(numbered, "train", val_share=0.3), names(numbered, "val", val_share=0.3)
    assert sorted(train + val) == [f"{i:02d}.png" for i in range(50)]
    assert 5 <= len(val) <= 25
    assert names(numbered, "val", seed=1, val_share=0.3) != val
    with pytest.raises(
        MissingSplitError, match=r"has no images of split 'test'; it has 'train' \(\d+\), 'val'"
    ):
        names(numbered, "test")


@pytest.mark.parametrize("place", ["train2017", "annotations/train2017", "images/train2017", "images", "."])
def test_finds_the_images(coco2017: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "train2017").rename(tmp_path / "moved")
    for file in list((tmp_path / "moved").iterdir()):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / place / file.name)
    records = read_coco_captions(coco2017, None, "train")
    assert records[0].source == tmp_path / place / "000000000001.jpg"


@pytest.mark.parametrize("place", ["elsewhere", "elsewhere/train2017"])
def test_an_image_root_wins(coco2017: Path, tmp_path: Path, place: str) -> None:
    for i in (1, 2, 3):
        save_image(tmp_path / place / f"{i:012d}.jpg")
    records = read_coco_captions(coco2017, tmp_path / "elsewhere", "train")
    assert records[0].source == tmp_path / place / "000000000001.jpg"


def test_says_where_it_looked(coco2017: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017").rename(tmp_path / "photos")
    message = (
        rf"looked for 000000000001\.jpg \(and others\) in {tmp_path}/annotations/train2017, .*image_root"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_coco_captions(coco2017, None, "train")
    with pytest.raises(FileNotFoundError, match=rf"in {tmp_path}/nowhere/train2017, .*{tmp_path}/nowhere, "):
        read_coco_captions(coco2017, tmp_path / "nowhere", "train")


def test_images_without_annotations_are_left_out(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    path = write_coco(tmp_path / "captions_val.json", {1: "a.png", 2: "b.png"}, [(1, "a")])
    assert names(path, "train") == ["a.png"]
    with pytest.raises(ValueError, match=r"image_info\.json has no captioned images$"):
        names(write_coco(tmp_path / "image_info.json", {1: "a.png"}, []), "train")


def test_empty_captions_make_one_error(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    path = write_coco(tmp_path / "c.json", {1: "a.png"}, [(1, " \n")])
    with pytest.raises(ValueError, match=r"c\.json: empty captions for 1 of 1 images \(a\.png\)"):
        names(path, "train")


IMAGE, ANNOTATION = {"id": 1, "file_name": "a.png"}, {"image_id": 1, "caption": "a"}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([IMAGE], [{"image_id": 2, "caption": "a"}], r"annotations\[0\] is of image 2, which is not among"),
        ([IMAGE], [ANNOTATION, {"image_id": 1, "bbox": []}], r"annotations\[1\] has no 'caption': give a fi"),
        ([IMAGE], ["a"], r"annotations\[0\] has no 'image_id'"),
        ([{"file_name": "a.png"}], [], r"images\[0\] has no 'id'"),
        ([IMAGE, IMAGE], [], "several images have the same 'id'"),
        ([{"id": 1}], [], r"images\[0\]: 'file_name' must be a file's name, got None"),
        ([{"id": 1, "file_name": "/a.png"}], [], r"images\[0\]: 'file_name' must stay inside the folder"),
        ({}, [], "it has no list named 'images'"),
        ([], None, "it has no list named 'annotations'"),
    ],
)
def test_malformed_content_is_named(tmp_path: Path, images: Any, annotations: Any, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(ValueError, match=rf"captions\.json.*{message}"):
        read_coco_captions(path, None, "train")


@pytest.mark.parametrize("content", [b"{oops", b"", b"\xff\xfe{}"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"captions\.json is not a JSON file: "):
        read_coco_captions(tmp_path / "captions.json", None, "train")


def test_it_is_told_from_other_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, expected in [
        ({"images": [], "annotations": []}, True),
        ({"images": [{"sentences": [{"raw": 'he writes "annotations": all day'}]}]}, False),
        ({"images": [{"filename": "annotations"}]}, False),
    ]:
        path.write_text(json.dumps(content))
        assert is_coco(path) is expected
