import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf.data import load_captioned_images, read_imagefolder, read_karpathy, read_scenes

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
    with pytest.raises(FileNotFoundError, match=r"^1 of \d+ images are missing \(.*7\.png\)"):
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
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are missing \(.*photos/a.png\); image_root"):
        load_captioned_images(path, "train", image_root=tmp_path / "photos")


@pytest.mark.parametrize("dataset", ["coco", "missing.json", "notes.txt"])
def test_anything_else_is_answered_with_what_is_accepted(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "notes.txt").touch()
    message = "notes.txt|coco|missing.json"
    message = (
        rf"no data set at '.*({message})': give 'scenes', the path of a Karpathy \.json file, or a folder"
    )
    with pytest.raises(ValueError, match=message):
        load_captioned_images(tmp_path / dataset, "train")


def test_an_image_root_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    for dataset in ("scenes", str(tmp_path)):
        with pytest.raises(
            ValueError, match=rf"image_root goes with a Karpathy \.json file, not with '{dataset}'"
        ):
            load_captioned_images(dataset, "train", image_root=tmp_path)


def test_real_photographs(flickr8k_mini: Path) -> None:
    records = load_captioned_images(flickr8k_mini / "dataset_flickr8k_mini.json", "val")
    assert len(records) == 113
    assert records[0].load().mode == "RGB"
