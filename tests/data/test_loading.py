"""Formats, splits, missing images and expected numbers of images."""

import csv
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import datasets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples

from ituning_hf.data.columns import CaptionedImage, CaptionedImages, write_rows
from ituning_hf.data.loading import is_dataset, load_captioned_images
from ituning_hf.data.records import (
    MissingSplitError,
    clean_caption,
    parse_file_name,
    parse_split,
)
from ituning_hf.data.scenes import make_scene, read_scenes
from ituning_hf.data.selection import check_images_exist, select_split
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.utils.errors import UserError

from .conftest import WriteJson, captions, save_image

# --- Formats


def test_scenes() -> None:
    found = load_captioned_images("scenes", "val", seed=3, num_scenes=4)
    assert list(found) == list(read_scenes("val", 4, 3))


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        *[(name, "no dataset at '{}'") for name in ("coco", "a.json", "x/a.csv", "x/a.parquet", "photos/")],
        ("x/dog.jpg", "no dataset at '{}'"),
        ("dog.jpg", "'{}' is a picture"),
        *[(name, r"'{}' is not a dataset \(unpack.*\)") for name in ("notes.md", "x.zip", "x.tar.gz")],
    ],
)
def test_an_unknown_dataset_error_lists_the_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dog.jpg", "notes.md", "x.zip", "x.tar.gz"):
        Path(name).touch()
    with pytest.raises(UserError, match=rf"^{problem.format(dataset)}: give 'scenes', a Karpathy"):
        load_captioned_images(dataset, "train")


def test_arguments_of_the_caption_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = "tars/val/0.tar parquet/x/0.parquet saved/state.json a.json a.csv a.parquet a.tar a.txt dog.jpg"
    files += " photos/sub/a.png photos/stray.tar photos/metadata.jsonl metadata/metadata.csv nothing/notes.md"
    for name in files.split():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    given = "tars parquet saved a.json a.csv a.parquet a.tar x/{0..1}.tar s3://x/*.tar org/name org/x:y"
    others = "a.txt dog.jpg photos metadata nothing b.json b.csv *.jpg x/dog.jpg nothing/notes.md"
    assert [name for name in (given + " " + others).split() if is_dataset(name)] == given.split()


def test_metadata_decides_the_format_of_a_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a"}')
    for other in ("pets.parquet", "dataset_info.json"):
        (tmp_path / other).touch()
    (image,) = load_captioned_images(tmp_path, "train")
    assert image == CaptionedImage("train/a.png", ("a",), tmp_path / "train" / "a.png")


def test_settings_that_have_no_effect_are_refused(tmp_path: Path, write_json: WriteJson) -> None:
    path = write_json({"images": [{"filename": "a", "split": "train", "sentences": [{"raw": "a"}]}]})
    with pytest.raises(UserError, match=r"^--image_root and --caption_column cannot be used with the"):
        load_captioned_images("scenes", "train", image_root="photos", caption_column="text")
    with pytest.raises(UserError, match=r"^--image_column cannot be used with .*dataset\.json, which is not"):
        load_captioned_images(path, "train", image_column="image")
    with pytest.raises(UserError, match=r"^--val_share 0\.2 has no effect: .* has its own splits"):
        captions(path, val_share=0.2)


def test_the_same_photographs_in_every_format(
    flickr8k_mini: Path, tmp_path: Path, datasets_cache: None, write_json: WriteJson
) -> None:
    karpathy = flickr8k_mini / "dataset_flickr8k_mini.json"
    train, val = (load_captioned_images(karpathy, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (762, 113)
    assert {len(image.captions) for part in (train, val) for image in part} == {5}
    assert (train[0].name, train[0].load().mode) == ("1000268201_693b08cb0e.jpg", "RGB")
    assert train[0].captions[1] == "A girl going into a wooden building ."
    wanted = {"train": list(train[:100]), "val": list(val[:100])}
    for split, images in wanted.items():
        ids = [{"id": i, "file_name": image.name} for i, image in enumerate(images)]
        texts = [{"image_id": i, "caption": t} for i, image in enumerate(images) for t in image.captions]
        write_json({"images": ids, "annotations": texts}, f"captions_{split}2017.json")
    rows = [(i.name, text, split) for split, images in wanted.items() for i in images for text in i.captions]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    names, texts, splits = map(list, zip(*rows, strict=True))
    table = datasets.Dataset.from_dict({"image": names, "caption": texts, "split": splits})
    table.to_parquet(tmp_path / "captions.parquet")
    for name in ("captions_train2017.json", "captions.csv", "captions.parquet"):
        for split, images in wanted.items():
            found = load_captioned_images(tmp_path / name, split, image_root=flickr8k_mini / "images")
            # each format has its own ids, or none
            assert [replace(i, image_id=None) for i in found] == [replace(i, image_id=None) for i in images]


# --- Splits


def entries(count: int, split: str | None = None) -> list[CaptionedImage]:
    return [
        CaptionedImage(f"{i:03d}.jpg", (f"picture {i}",), Path(f"/photos/{i:03d}.jpg"), split=split)
        for i in range(count)
    ]


def names(images: list[CaptionedImage], split: str, seed: int = 0, val_share: float = 0.1) -> list[str]:
    found = select_split(write_rows(images), split, "photos", seed, val_share)
    assert all(image in images for image in found)
    return [image.name for image in found]


def test_val_is_chosen_by_seed_and_name() -> None:
    train, val = names(entries(300), "train"), names(entries(300), "val")
    assert sorted(train + val) == [image.name for image in entries(300)]
    assert (train, val) == (sorted(train), sorted(val))  # in the order of the entries
    assert 15 <= len(val) <= 45
    assert val[:4] == ["010.jpg", "015.jpg", "022.jpg", "026.jpg"]  # on every machine
    assert names(entries(300), "val", seed=1) != val
    assert 120 <= len(names(entries(300), "val", val_share=0.5)) <= 180
    assert set(names(entries(100)[::-1], "val")) == {name for name in val if name < "100.jpg"}


@pytest.mark.parametrize(("val_share", "sizes"), [(1e-9, [4, 1]), (1 - 1e-9, [1, 4])])
def test_neither_split_is_left_empty(val_share: float, sizes: list[int]) -> None:
    assert [len(names(entries(5), split, val_share=val_share)) for split in ("train", "val")] == sizes
    assert names(entries(1), "train") == ["000.jpg"]
    with pytest.raises(MissingSplitError, match=r"has no images of split 'val'; it has 'train' \(1\)"):
        names(entries(1), "val")
    with pytest.raises(MissingSplitError, match=r"^photos has no images$"):
        names([], "train")


@pytest.mark.parametrize("val_share", [0, 1, -0.1])
def test_val_share_is_a_share(val_share: float) -> None:
    with pytest.raises(UserError, match=f"--val_share must be between 0 and 1, got {val_share}"):
        names(entries(3), "train", val_share=val_share)


def test_stated_splits_are_kept() -> None:
    mixed = [*entries(2, "val"), *entries(3, "train")[2:]]
    assert names(mixed, "val", seed=9) == ["000.jpg", "001.jpg"]
    with pytest.raises(MissingSplitError, match=r" 'test'; it has 'val' \(2\), 'train' \(1\)$"):
        names(mixed, "test")
    with pytest.raises(UserError, match=r"^photos: '000\.jpg' has a split and '002\.jpg' has none: state"):
        names([*entries(2, "val"), *entries(3)[2:]], "val")


def test_split_names() -> None:
    values = (None, "", "train", "validation")
    assert [parse_split(value) for value in values] == [None, None, "train", "val"]


TEXTS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), TEXTS), min_size=1), st.integers(0, 3))
@examples(30, 5000)
def test_merged_entries_keep_every_caption_in_order(rows: list[tuple[str, list[str]]], seed: int) -> None:
    merged: dict[str, list[str]] = {}
    for name, texts in rows:
        merged.setdefault(name, []).extend(texts)
    entries = write_rows(CaptionedImage(name, tuple(texts), Path(name)) for name, texts in rows)
    found = {}
    for split in ("all", "val", "train"):
        with suppress(MissingSplitError):  # of one image
            images = select_split(entries, split, "data", seed, 0.5)
            found[split] = {image.name: list(image.captions) for image in images}
    everything = list(found.pop("all").items())
    assert everything == list(merged.items())  # in the order of first entries
    parts = found["train"] | found.get("val", {})
    assert [(name, parts[name]) for name in merged] == everything
    assert len(parts) == sum(map(len, found.values()))


# --- Expected numbers of images


def test_an_unexpected_number_of_images_is_refused() -> None:
    for expected in (None, 4):
        TrainArguments(expected_train_images=expected).check_count("expected_train_images", entries(4))
    with pytest.raises(UserError, match=r"^--expected_train_images is 113,287, but .* has 4 images"):
        TrainArguments(expected_train_images=113_287).check_count("expected_train_images", entries(4))


# --- Names, captions and files


def test_cleaning_collapses_white_space() -> None:
    assert clean_caption("  a dog\r\n  runs\t\u00a0fast . ") == "a dog runs fast ."


def test_file_names() -> None:
    for value in (None, "", 7):
        with pytest.raises(UserError, match=f"^'image' must be a file name, got {value!r}$"):
            parse_file_name(value, "image")
    with pytest.raises(UserError, match=r"'image' is a URL, 'https://e\.org/a\.jpg': download the images"):
        parse_file_name("https://e.org/a.jpg", "image")
    for name in ("../a.jpg", "b/../../a.jpg", "..\\a.jpg"):
        with pytest.raises(UserError, match="must stay inside the folder"):
            parse_file_name(name, "image", absolute=True)
    for name in ("/photos/a.jpg", "C:\\photos\\a.jpg"):
        assert parse_file_name(name, "image", absolute=True) == name


PARTS = st.sampled_from(["..", ".", "/", "\\", "a", "b.jpg", "C:", "~", "...", " ", "\0"])


@given(st.lists(PARTS, max_size=7).map("".join) | st.text(max_size=9))
@example("./\\a.jpg")
@example("./C:\\a.jpg")
@examples(50, 10_000)
def test_file_names_cannot_leave_their_folder(name: str) -> None:
    try:
        parsed = parse_file_name(name, "image")
    except UserError:
        return
    assert not PurePosixPath(parsed).is_absolute()
    assert not PureWindowsPath(parsed).anchor
    assert ".." not in parsed.replace("\\", "/").split("/")
    assert parse_file_name(parsed, "image") == parsed


def test_missing_images_raise_one_error_and_empty_ones_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [CaptionedImage(str(i), ("a",), tmp_path / f"{i}.jpg") for i in range(6)]
    rows.append(CaptionedImage("scene", ("a",), make_scene(0, 0).to_png()))
    images = CaptionedImages.from_images(rows)
    save_image(tmp_path / "0.jpg")
    (tmp_path / "3.jpg").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"^4 of 7 images of split 'val' .*{tmp_path}/1\.jpg, .*, \.\.\.\)"
    ):
        check_images_exist(images, "val")
    check_images_exist(images.select([0, 3, 6]), "val")
    assert caplog.messages == [
        f"1 of 3 images of split 'val' are empty or not files ({tmp_path}/3.jpg): unpack or copy them again"
    ]
