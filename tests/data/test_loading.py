import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from ituning_hf.data.coco import read_coco_captions
from ituning_hf.data.imagefolder import read_imagefolder
from ituning_hf.data.karpathy import read_karpathy
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.scenes import read_scenes

from .conftest import save_image

ENTRY = {"filename": "a.png", "split": "train", "sentences": [{"raw": "a"}]}


def test_scenes() -> None:
    assert load_captioned_images("scenes", "val", seed=3, num_scenes=4) == read_scenes("val", 4, 3)
    assert len(load_captioned_images("scenes", "train")) == 2000


def test_image_folder(tmp_path: Path) -> None:
    rows = [{"file_name": save_image(tmp_path / f"{i}.png").name, "caption": "a"} for i in range(30)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for seed in (0, 1):
        expected = read_imagefolder(tmp_path, "val", seed)
        assert load_captioned_images(str(tmp_path), "val", seed=seed) == expected
    (tmp_path / "7.png").unlink()
    splits = ("train", "val")
    broken = next(split for split in splits if "7.png" in [r.name for r in read_imagefolder(tmp_path, split)])
    with pytest.raises(FileNotFoundError, match=r"^1 of the split's \d+ images are missing \(.*7\.png\)"):
        load_captioned_images(tmp_path, broken)


@pytest.mark.parametrize("folder", [".", "images"])
def test_karpathy_finds_its_images(write_json: Callable[..., Path], tmp_path: Path, folder: str) -> None:
    path = write_json([ENTRY], "captions.JSON")
    (tmp_path / "images").mkdir()  # there in both cases, but another data set's in one
    save_image(tmp_path / folder / "a.png")
    assert load_captioned_images(path, "train") == read_karpathy(path, tmp_path / folder, "train")


def test_karpathy_with_an_image_root(write_json: Callable[..., Path], tmp_path: Path) -> None:
    path = write_json([ENTRY])
    save_image(tmp_path / "images" / "a.png")
    save_image(tmp_path / "photos" / "a.png")
    records = load_captioned_images(path, "train", image_root=tmp_path / "photos")
    assert [record.source for record in records] == [tmp_path / "photos" / "a.png"]
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(
        FileNotFoundError, match=r"1 of the split's 1 images are missing \(.*photos/a.png\): unpack"
    ):
        load_captioned_images(path, "train", image_root=tmp_path / "photos")


@pytest.mark.parametrize("dataset", ["coco", "missing.json", "notes.md"])
def test_anything_else_is_answered_with_what_is_accepted(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "notes.md").touch()
    message = (
        r"no data set at '.*(notes\.md|coco|missing\.json)': give 'scenes', the path of a Karpathy, COCO "
    )
    with pytest.raises(ValueError, match=message):
        load_captioned_images(tmp_path / dataset, "train")


@pytest.mark.parametrize(
    "dataset", ["data/captions.csv", "data/pets.parquet", "data/captions.json", "photos/"]
)
def test_the_hub_is_not_asked_for_files(dataset: str) -> None:
    with pytest.raises(ValueError, match=rf"^no data set at '{dataset}': give 'scenes'"):
        load_captioned_images(dataset, "train")


@pytest.mark.parametrize("name", ["captions.csv", "captions.TSV", "captions.txt"])
def test_text_tables(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / name).write_text("photo,image,alt,split\n,a.png,a dog,val\n")
    records = load_captioned_images(
        tmp_path / name, "val", image_root=tmp_path / "images", image_column="image", caption_column="alt"
    )
    assert [(r.name, r.captions) for r in records] == [("a.png", ("a dog",))]
    with pytest.raises(
        FileNotFoundError, match=r"^1 of the split's 1 images are missing \(.*a\.png\): unpack"
    ):
        load_captioned_images(tmp_path / name, "val", caption_column="alt")


def test_coco_is_told_by_its_content(tmp_path: Path) -> None:
    rows = [{"id": i, "file_name": save_image(tmp_path / f"{i}.png").name} for i in range(30)]
    path = tmp_path / "captions.json"
    path.write_text(
        json.dumps({"images": rows, "annotations": [{"image_id": i, "caption": "a"} for i in range(30)]})
    )
    expected = read_coco_captions(path, tmp_path, "val", seed=1, val_share=0.5)
    assert load_captioned_images(path, "val", image_root=tmp_path, seed=1, val_share=0.5) == expected
    (tmp_path / "3.png").unlink()
    split = next(
        s for s in ("train", "val") if "3.png" in [r.name for r in read_coco_captions(path, None, s)]
    )
    with pytest.raises(FileNotFoundError, match=r"^1 of the split's \d+ images are missing \(.*3\.png\)"):
        load_captioned_images(path, split)


def test_metadata_decides_what_a_folder_is(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a"}')
    for other in ("pets.parquet", "dataset_info.json"):
        (tmp_path / other).touch()
    assert load_captioned_images(tmp_path, "train") == read_imagefolder(tmp_path, "train")


OPTIONS = {"image_root": "photos", "image_column": "image", "caption_column": "text", "val_share": 0.2}


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("the built-in scenes", ["image_root", "image_column", "caption_column", "val_share"]),
        ("a Karpathy file", ["image_column", "caption_column", "val_share"]),
        ("a COCO captions file", ["image_column", "caption_column"]),
        ("a folder with metadata.jsonl", ["image_root", "image_column", "caption_column"]),
    ],
)
def test_settings_that_nothing_reads_are_refused(tmp_path: Path, kind: str, refused: list[str]) -> None:
    dataset = tmp_path / "a.json"
    if kind.endswith("file"):
        dataset.write_text(
            json.dumps({"images": [], "annotations": []} if "COCO" in kind else {"images": []})
        )
    given = {"the built-in scenes": "scenes", "a folder with metadata.jsonl": str(tmp_path)}.get(
        kind, dataset
    )
    for option in refused:
        with pytest.raises(
            ValueError, match=rf"^{option}: of no use with {kind} \('{given}'\); leave it out$"
        ):
            load_captioned_images(given, "train", **{option: OPTIONS[option]})
    with pytest.raises(ValueError, match=f"^{' and '.join(refused)}: of no use"):
        load_captioned_images(given, "train", **OPTIONS)


def test_real_photographs(flickr8k_mini: Path) -> None:
    records = load_captioned_images(flickr8k_mini / "dataset_flickr8k_mini.json", "val")
    assert len(records) == 113
    assert records[0].load().mode == "RGB"


def test_the_same_photographs_in_every_form(
    flickr8k_mini: Path, tmp_path: Path, datasets_cache: Path
) -> None:
    images = flickr8k_mini / "images"
    wanted = {
        split: load_captioned_images(flickr8k_mini / "dataset_flickr8k_mini.json", split)
        for split in ("train", "val")
    }
    for split, records in wanted.items():
        _write_coco(tmp_path / f"captions_{split}2017.json", records)
    splits = [(split, record) for split, records in wanted.items() for record in records]
    rows = [(record.name, text, split) for split, record in splits for text in record.captions]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    names, texts, column = map(list, zip(*rows, strict=True))
    table = datasets.Dataset.from_dict({"image": names, "caption": texts, "split": column})
    table.to_parquet(tmp_path / "captions.parquet")
    for name in ("captions_train2017.json", "captions.csv", "captions.parquet"):
        for split, records in wanted.items():
            same = load_captioned_images(tmp_path / name, split, image_root=images)
            # each format numbers the images in its own way, or not at all
            assert [replace(r, image_id=None) for r in same] == [replace(r, image_id=None) for r in records]


def test_the_same_photographs_inside_parquet(
    flickr8k_mini: Path, tmp_path: Path, datasets_cache: Path
) -> None:
    wanted = load_captioned_images(flickr8k_mini / "dataset_flickr8k_mini.json", "val")[:20]
    rows = [(str(record.source), text) for record in wanted for text in record.captions]
    images, texts = map(list, zip(*rows, strict=True))
    table = datasets.Dataset.from_dict({"image": images, "text": texts})
    (tmp_path / "photos").mkdir()
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "photos" / "val.parquet")
    records = load_captioned_images(tmp_path / "photos", "val")
    assert [record.captions for record in records] == [record.captions for record in wanted]
    for record, original in zip(records, wanted, strict=True):
        assert record.load().tobytes() == original.load().tobytes()


def _write_coco(path: Path, records: list[CaptionedImage]) -> None:
    images = [{"id": i, "file_name": record.name} for i, record in enumerate(records)]
    annotations = [
        {"image_id": i, "caption": text} for i, record in enumerate(records) for text in record.captions
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
