import json
from pathlib import Path
from typing import Any

import pytest

from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.nocaps import is_nocaps, read_nocaps
from ituning_hf.data.records import CaptionedImage

from .conftest import save_image

IDS = ("0013ea2087020901", "0002c96937fae3b3", "001464cfae2a30b8")
DOMAINS = ("in-domain", "near-domain", "out-domain")


def write_nocaps(
    path: Path, description: str, captions: list[tuple[int, str]] | None = None, **extra: Any
) -> Path:
    """A file of three images, numbered from 10; with captions it says their domains, as NoCaps' does."""
    images = [
        {
            "id": 10 + i,
            "open_images_id": name,
            "file_name": f"{name}.jpg",
            "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}.jpg",
            **({} if captions is None else {"domain": DOMAINS[i]}),
            **extra,
        }
        for i, name in enumerate(IDS)
    ]
    content: dict[str, Any] = {"licenses": [], "info": {"description": description}, "images": images}
    if captions is not None:
        content["annotations"] = [
            {"id": i, "image_id": image_id, "caption": text} for i, (image_id, text) in enumerate(captions)
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def val(tmp_path: Path) -> Path:
    captions = [(11, "two"), (10, " one  dog "), (12, "three"), (10, "one")]
    return write_nocaps(tmp_path / "nocaps_val_4500_captions.json", "nocaps validation dataset", captions)


@pytest.fixture
def test(tmp_path: Path) -> Path:
    return write_nocaps(tmp_path / "nocaps_test_image_info.json", "nocaps test dataset")


def save_images(folder: Path) -> Path:
    for name in IDS:
        save_image(folder / f"{name}.jpg")
    return folder


def test_captions_ids_and_domains(val: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "val")
    captions = [("one dog", "one"), ("two",), ("three",)]
    expected = [
        CaptionedImage(f"{name}.jpg", texts, folder / f"{name}.jpg", 10 + i, domain)
        for i, (name, texts, domain) in enumerate(zip(IDS, captions, DOMAINS, strict=True))
    ]
    assert read_nocaps(val, None, "val") == expected
    assert load_captioned_images(val, "val") == expected


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("test", None),
        (".", None),
        ("images", None),
        ("images/test", None),
        ("open/test", "open"),
        ("open", "open"),
        ("open/images/test", "open"),
    ],
)
def test_pictures_are_found_and_need_no_captions(
    test: Path, tmp_path: Path, place: str, root: str | None
) -> None:
    folder = save_images(tmp_path / place)
    records = load_captioned_images(test, "test", image_root=root and tmp_path / root, require_captions=False)
    assert [record.source for record in records] == [folder / f"{name}.jpg" for name in IDS]
    assert [(record.image_id, record.domain, record.captions) for record in records] == [
        (10, None, ()),
        (11, None, ()),
        (12, None, ()),
    ]


def test_validation_pictures_lie_as_open_images_names_them(val: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "validation")
    assert read_nocaps(val, tmp_path, "val")[0].source == folder / f"{IDS[0]}.jpg"


def test_without_captions_it_must_be_asked_for(test: Path, tmp_path: Path) -> None:
    save_images(tmp_path)
    message = r"nocaps_test_image_info\.json is a file of images without captions: they can be captioned"
    with pytest.raises(ValueError, match=message):
        load_captioned_images(test, "test")


def test_some_images_without_captions_are_refused_all_the_same(tmp_path: Path) -> None:
    save_images(tmp_path)
    path = write_nocaps(tmp_path / "nocaps_val.json", "", [(10, "a"), (12, " ")])
    with pytest.raises(ValueError, match=r"empty captions for 2 of 3 images \(0002c96937fae3b3\.jpg, 001464"):
        read_nocaps(path, None, "val", require_captions=False)


def test_the_split_must_be_the_file_s(val: Path, test: Path) -> None:
    for path, own, asked in ((val, "val", "test"), (test, "test", "val"), (val, "val", "train")):
        message = rf"{path.name} has no images of split '{asked}'; it is NoCaps' '{own}'$"
        with pytest.raises(ValueError, match=message):
            read_nocaps(path, None, asked, require_captions=False)


def test_the_name_tells_the_split_where_the_content_does_not(tmp_path: Path) -> None:
    save_images(tmp_path)
    path = write_nocaps(tmp_path / "my_nocaps_val_evaluation.json", "nocaps")
    assert len(read_nocaps(path, None, "val", require_captions=False)) == 3
    path = write_nocaps(tmp_path / "evaluation.json", "nocaps")
    with pytest.raises(
        ValueError, match=r"evaluation\.json says neither val nor test: name it as NoCaps does, nocaps_val_"
    ):
        read_nocaps(path, None, "val", require_captions=False)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"id": 7}, "several images have the same 'id'"),
        ({"id": "a"}, "several images have the same 'id'"),
        ({"file_name": "a.jpg"}, r"1 names of images stand there more than once \(a\.jpg\)"),
        ({"file_name": "../a.jpg"}, "must stay inside the folder"),
        (
            {"domain": "far-domain"},
            "image 10: 'domain' must be one of in-domain, near-domain, out-domain, got 'far",
        ),
    ],
)
def test_malformed_images_are_refused(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    save_images(tmp_path)
    save_image(tmp_path / "a.jpg")
    path = write_nocaps(tmp_path / "nocaps_val.json", "", None, **extra)
    with pytest.raises(ValueError, match=message):
        read_nocaps(path, None, "val", require_captions=False)


def test_ids_must_be_numbers(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg")
    image = {"id": "7", "open_images_id": "a", "file_name": "a.jpg"}
    (tmp_path / "nocaps_val.json").write_text(json.dumps({"images": [image]}))
    with pytest.raises(ValueError, match=r"'id' must be a number, as NoCaps numbers its images, got '7'$"):
        read_nocaps(tmp_path / "nocaps_val.json", None, "val", require_captions=False)
    (tmp_path / "nocaps_val.json").write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"nocaps_val\.json has no images$"):
        read_nocaps(tmp_path / "nocaps_val.json", None, "val", require_captions=False)


def test_missing_pictures_are_counted(val: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "val")
    (folder / f"{IDS[1]}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"^1 of the split's 3 images are missing .*Missing are 1 of 3 in .*/val$"
    ):
        load_captioned_images(val, "val")
    for name in IDS[::2]:
        (folder / f"{name}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"looked for {IDS[0]}\.jpg \(and others\) in .*/val, .*image_root"
    ):
        load_captioned_images(val, "val")


def test_pictures_may_be_absent_where_nobody_opens_them(val: Path, tmp_path: Path) -> None:
    records = load_captioned_images(val, "val", require_images=False)
    assert [record.source for record in records] == [tmp_path / "val" / f"{name}.jpg" for name in IDS]


def test_it_is_told_from_other_json(val: Path, tmp_path: Path) -> None:
    assert is_nocaps(val)
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"file_name": "open_images_id"}]}))
    assert not is_nocaps(tmp_path / "a.json")


def test_other_settings_are_refused(val: Path) -> None:
    with pytest.raises(ValueError, match=r"^val_share: of no use with a NoCaps file \("):
        load_captioned_images(val, "val", val_share=0.2)
