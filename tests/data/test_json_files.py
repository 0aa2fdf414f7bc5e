"""Karpathy's JSON, COCO captions and NoCaps."""

from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import MissingSplitError
from ituning_hf.utils.errors import UserError

from .conftest import WriteJson, captions, load, save_image

# --- Karpathy


def entry(filename: str, split: str, *texts: str, **extra: Any) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": text} for text in texts], **extra}


def test_karpathy_names_captions_paths_and_ids(write_json: WriteJson, tmp_path: Path) -> None:
    entries = [
        entry("a.jpg", "val", " A dog .\n", "two\ndogs", "  ", cocoid=391895, imgid=0),
        entry("b.jpg", "test", "a", imgid=1),
        entry("c.jpg", "val", "a", imgid=1),
        entry("d.jpg", "val", "a"),
    ]
    folder = tmp_path / "photos"
    assert load(write_json({"images": entries}), "val", image_root=folder) == [
        CaptionedImage("a.jpg", ("A dog .", "two dogs"), folder / "a.jpg", 391895),
        CaptionedImage("c.jpg", ("a",), folder / "c.jpg", 1),
        CaptionedImage("d.jpg", ("a",), folder / "d.jpg"),
    ]


def test_karpathy_train_includes_restval_in_file_order(write_json: WriteJson) -> None:
    splits = ["restval", "val", "train", "test", "restval"]
    path = write_json({"images": [entry(f"{i}.jpg", split, "a") for i, split in enumerate(splits)]})
    names = {split: list(captions(path, split)) for split in ("train", "val", "test", "restval")}
    assert names == {
        "train": ["0.jpg", "2.jpg", "4.jpg"],
        "val": ["1.jpg"],
        "test": ["3.jpg"],
        "restval": ["0.jpg", "4.jpg"],
    }
    with pytest.raises(MissingSplitError, match=r"no images of split 'dev'; it has 'restval' \(2\), 'val'"):
        load(path, "dev")


def test_karpathy_image_folders_may_be_merged(write_json: WriteJson, tmp_path: Path) -> None:
    entries = [
        entry("a.jpg", "val", "a", filepath="val2014"),
        entry("b.jpg", "train", "a", filepath="train2014"),
        entry("c.jpg", "val", "a", filepath=""),
    ]
    path = write_json({"images": entries})
    names = ["val2014/a.jpg", "c.jpg", "train2014/b.jpg"]

    def sources() -> list[Path]:
        images = [*load(path, "val", image_root=tmp_path), *load(path, image_root=tmp_path)]
        assert [image.name for image in images] == names
        return [image.source for image in images]

    assert sources() == [tmp_path / name for name in names]
    (tmp_path / "b.jpg").touch()
    assert sources() == [tmp_path / "a.jpg", tmp_path / "c.jpg", tmp_path / "b.jpg"]
    save_image(tmp_path / "val2014" / "a.jpg")
    assert sources() == [tmp_path / name for name in names]


@pytest.mark.parametrize("folder", [".", "images"])
def test_karpathy_images_are_found_near_the_file(write_json: WriteJson, tmp_path: Path, folder: str) -> None:
    path = write_json({"images": [entry("a.png", "train", "a")]}, "captions.JSON")
    (tmp_path / "images").mkdir()  # may be the folder of another dataset
    image = save_image(tmp_path / folder / "a.png")
    assert [record.source for record in load_captioned_images(path, "train")] == [image]
    other = save_image(tmp_path / "photos" / "a.png")
    assert [record.source for record in load(path, image_root=other.parent)] == [other]


@pytest.mark.parametrize(
    "bad",
    [
        "a.jpg",
        {"filename": "a.jpg", "sentences": []},
        {"split": "train", "sentences": []},
        {"split": "train", "filename": "a.jpg"},
        {"split": "train", "filename": 7, "sentences": [{"raw": "a"}]},
    ],
)
def test_malformed_karpathy_entries_are_named(write_json: WriteJson, bad: Any) -> None:
    path = write_json({"images": [entry("a.jpg", "train", "a"), bad]})
    with pytest.raises(UserError, match=r"dataset\.json: images\[1\] is not a Karpathy entry: it needs"):
        load(path)


@pytest.mark.parametrize("sentences", [[{"tokens": ["a"]}], [{"raw": 7}], {}, 7])
def test_malformed_karpathy_sentences_are_named(write_json: WriteJson, sentences: Any) -> None:
    path = write_json(
        {"images": [entry("a.jpg", "train", "a"), entry("b.jpg", "train") | {"sentences": sentences}]}
    )
    with pytest.raises(UserError, match=r"json: images\[1\]: 'sentences' must be a string or a list of"):
        load(path)


def test_contradictory_karpathy_entries_are_refused(write_json: WriteJson) -> None:
    with pytest.raises(UserError, match=r"the entries of 'a\.jpg' have different splits, val and test"):
        load(write_json({"images": [entry("a.jpg", "val", "a"), entry("a.jpg", "test", "b")]}), "val")
    entries = [entry(f"{i}.jpg", "val", "a", imgid=i // 2) for i in range(3)]
    with pytest.raises(UserError, match=r"1 ids belong to several images \(0\)"):
        load(write_json({"images": entries}), "val")
    entries = [entry(f"{i}.jpg", "train", *([" "] * i)) for i in range(4)]
    with pytest.raises(UserError, match=r"4 of 4 images have no caption \(0\.jpg, 1\.jpg, 2\.jpg, \.\.\.\)"):
        load(write_json({"images": entries}))


def test_json_lines_need_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"image": "a.jpg"}\n{"image": "b.jpg"}\n')
    with pytest.raises(
        UserError, match=r"a\.json is not JSON: Extra data: .*JSON lines, rename it to \.jsonl"
    ):
        load(tmp_path / "a.json")


# --- COCO


def coco(images: dict[int, str], texts: list[tuple[int, str]]) -> dict[str, Any]:
    return {
        "images": [{"id": image_id, "file_name": name} for image_id, name in images.items()],
        "annotations": [
            {"id": i, "image_id": image_id, "caption": text} for i, (image_id, text) in enumerate(texts)
        ],
    }


@pytest.fixture
def coco2017(write_json: WriteJson, tmp_path: Path) -> Path:
    """COCO's own layout: annotations/ next to train2017/ and val2017/. One image has no annotation."""
    for part, first in (("train", 1), ("val", 5)):
        images = {i: f"{i:012d}.jpg" for i in range(first, first + 4)}
        for name in images.values():
            save_image(tmp_path / f"{part}2017" / name)
        texts = [(first + 1, " two\n dogs "), (first, "a cat"), (first + 1, "dogs"), (first + 2, "a")]
        write_json(coco(images, texts), f"annotations/captions_{part}2017.json")
    return tmp_path / "annotations" / "captions_train2017.json"


def test_coco_captions_ids_and_splits(coco2017: Path, tmp_path: Path) -> None:
    for split, first in (("train", 1), ("val", 5)):
        names = [f"{i:012d}.jpg" for i in range(first, first + 3)]
        texts = [("a cat",), ("two dogs", "dogs"), ("a",)]
        assert list(load_captioned_images(coco2017, split)) == [
            CaptionedImage(name, text, tmp_path / f"{split}2017" / name, first + i)
            for i, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
    with pytest.raises(MissingSplitError, match=r"no images of split 'test'; it has 'train' \(3\)"):
        load(coco2017, "test")
    val = coco2017.with_name("captions_val2017.json")
    coco2017.unlink()
    assert len(load(val, "val")) == 3
    with pytest.raises(MissingSplitError, match=r"no images of split 'train'; it has 'val' \(3\)"):
        load(val, "train")


@pytest.mark.parametrize("name", ["captions.json", "captions_train2014.json"])
def test_coco_without_a_val_file_is_divided_by_the_seed(write_json: WriteJson, name: str) -> None:
    path = write_json(
        coco({100 + i: f"{i:02d}.png" for i in range(50)}, [(100 + i, "a") for i in range(50)]), name
    )
    train, val = captions(path, "train", val_share=0.3), captions(path, "val", val_share=0.3)
    assert sorted([*train, *val]) == [f"{i:02d}.png" for i in range(50)]
    assert 5 <= len(val) <= 25
    assert captions(path, "val", seed=1, val_share=0.3) != val


@pytest.mark.parametrize("folder", ["train2017", "annotations/train2017", "images/train2017", "images", "."])
def test_coco_images_are_found(coco2017: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "train2017").rename(tmp_path / "moved")
    for file in list((tmp_path / "moved").iterdir()):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / folder / file.name)
    assert load_captioned_images(coco2017, "train")[0].source == tmp_path / folder / "000000000001.jpg"
    image = save_image(tmp_path / "elsewhere" / folder / "000000000001.jpg")
    if "/" not in folder:
        assert load(coco2017, image_root=tmp_path / "elsewhere")[0].source == image


IMAGE, ANNOTATION = {"id": 1, "file_name": "a.png"}, {"image_id": 1, "caption": "a"}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([IMAGE], [{"image_id": 2, "caption": "a"}], r"annotations\[0\] refers to image 2, .* images are 1"),
        ([IMAGE], [ANNOTATION | {"image_id": 1.5}], r"annotations\[0\] has no valid 'image_id'"),
        ([IMAGE, IMAGE | {"id": "1"}], [], r"images\[1\] has the same 'id' as another image, '1'"),
        ([IMAGE], [ANNOTATION, {"image_id": 1, "bbox": []}], r"annotations\[1\] has no valid 'caption'"),
        ([IMAGE], ["a"], r"annotations\[0\] has no valid 'image_id'"),
        ([IMAGE], [ANNOTATION | {"caption": " \n"}], r"1 of 1 images have no caption \(a\.png\)"),
        ([{"file_name": "a.png"}], [], r"images\[0\] has no valid 'id'"),
        ([IMAGE, IMAGE], [], r"images\[1\] has the same 'id' as another image, 1"),
        (
            [IMAGE, IMAGE | {"id": 2}],
            [ANNOTATION, ANNOTATION | {"image_id": 2}],
            r"the entries of 'a\.png' have different ids, 1 and 2: correct or remove one of them",
        ),
        ([{"id": 1}], [ANNOTATION], r"images\[0\]: 'file_name' must be a file name, got None"),
        (
            [{"id": 1, "file_name": "/a.png"}],
            [ANNOTATION],
            r"images\[0\]: 'file_name' must stay inside the folder",
        ),
        ({}, [], "no list named 'images'"),
        ([], None, "no list named 'annotations'"),
        ([IMAGE], [], "has no images$"),
    ],
)
def test_malformed_coco_is_named(write_json: WriteJson, images: Any, annotations: Any, message: str) -> None:
    path = write_json({"images": images, "annotations": annotations}, "captions.json")
    with pytest.raises(UserError, match=rf"captions\.json.*{message}"):
        load(path)


# --- NoCaps

IDS = ("0013ea2087020901", "0002c96937fae3b3", "001464cfae2a30b8")
DOMAINS = ("in-domain", "near-domain", "out-domain")


def nocaps(texts: list[tuple[int, str]] | None = None) -> dict[str, Any]:
    """Three images with the ids 10 to 12; with captions, each has a domain, as in NoCaps' own files."""
    domains = [{}] * 3 if texts is None else [{"domain": domain} for domain in DOMAINS]
    images = [
        {"id": 10 + i, "open_images_id": name, "file_name": f"{name}.jpg", **domains[i]}
        for i, name in enumerate(IDS)
    ]
    annotations = {} if texts is None else {"annotations": coco({}, texts)["annotations"]}
    return {"images": images, **annotations}


@pytest.fixture
def nocaps_val(write_json: WriteJson) -> Path:
    texts = [(11, "two"), (10, " one  dog "), (12, "three"), (10, "one")]
    return write_json(nocaps(texts), "nocaps_val_4500_captions.json")


@pytest.fixture
def nocaps_test(write_json: WriteJson) -> Path:
    return write_json(nocaps(), "nocaps_test_image_info.json")


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_nocaps_captions_ids_and_domains(nocaps_val: Path, tmp_path: Path, folder: str) -> None:
    sources = [save_image(tmp_path / folder / f"{name}.jpg") for name in IDS]
    texts = [("one dog", "one"), ("two",), ("three",)]
    assert list(load_captioned_images(nocaps_val, "val")) == [
        CaptionedImage(source.name, texts[i], source, 10 + i, DOMAINS[i]) for i, source in enumerate(sources)
    ]


@pytest.mark.parametrize(
    ("folder", "root"), [("test", None), (".", None), ("images/test", None), ("open/images/test", "open")]
)
def test_nocaps_images_without_captions_require_an_option(
    nocaps_test: Path, tmp_path: Path, folder: str, root: str | None
) -> None:
    sources = [save_image(tmp_path / folder / f"{name}.jpg") for name in IDS]
    image_root = root and tmp_path / root
    images = load_captioned_images(nocaps_test, "test", image_root=image_root, require_captions=False)
    assert list(images) == [CaptionedImage(s.name, (), s, 10 + i) for i, s in enumerate(sources)]
    with pytest.raises(UserError, match=r"3 of 3 images have no caption"):
        load(nocaps_test, "test")


def test_nocaps_files_have_one_split(nocaps_val: Path, nocaps_test: Path, write_json: WriteJson) -> None:
    for path, own, asked in ((nocaps_val, "val", "test"), (nocaps_test, "test", "val")):
        with pytest.raises(MissingSplitError, match=rf"no images of split '{asked}'; it has '{own}' \(3\)"):
            load(path, asked, require_captions=False)
    for name in ("my_nocaps_val.json", "val/nocaps.json"):
        assert len(load(write_json(nocaps(), name), "val", require_captions=False)) == 3
    with pytest.raises(UserError, match=r"val_test\.json is a NoCaps file of an unknown split: rename it"):
        load(write_json(nocaps(), "val_test.json"), "val")


# --- All three


@pytest.mark.parametrize("content", [[], {"annotations": []}, {"images": {"a": 1}}, None])
def test_other_json_is_refused(write_json: WriteJson, content: Any) -> None:
    with pytest.raises(UserError, match="is not a Karpathy, COCO or NoCaps file: it has no list"):
        load(write_json(content))


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret.jpg", "C:\\secret.jpg"])
@pytest.mark.parametrize("field", ["filename", "filepath"])
def test_names_stay_inside_the_folder(write_json: WriteJson, field: str, place: str) -> None:
    bad = entry("a.jpg", "train", "a", filepath="") | {field: place}
    with pytest.raises(UserError, match=r"images\[0\]: 'filename' must stay inside the folder"):
        load(write_json({"images": [bad]}))
