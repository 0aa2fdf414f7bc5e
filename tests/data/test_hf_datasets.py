"""Parquet files and datasets of the library `datasets`."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.hf_datasets import is_hub_name, is_saved_dataset
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import MissingSplitError
from ituning_hf.utils.errors import UserError

from .conftest import captions, load, save_image

pytestmark = pytest.mark.usefixtures("datasets_cache")


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(count: int, first: int = 0, **columns: list[Any]) -> datasets.Dataset:
    """Rows with an image file each and the captions "a 0", "a 1", ..."""
    numbers = range(first, first + count)
    content = {"image": [{"bytes": png(i), "path": None} for i in numbers]}
    content["caption"] = [f"a {i}" for i in numbers]
    return datasets.Dataset.from_dict({**content, **columns}).cast_column("image", datasets.Image())


def write(path: Path, data: datasets.Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path)
    return path


def test_a_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "pets[1].parquet", table(3, caption=[" a\n dog", "a cat", "a cow"]))
    images = [image for split in ("train", "val") for image in load(path, split)]
    found = {image.name: (image.captions, image.load().getpixel((0, 0))) for image in images}
    assert found == {
        "train[0]": (("a dog",), (0, 0, 0)),
        "train[1]": (("a cat",), (1, 0, 0)),
        "train[2]": (("a cow",), (2, 0, 0)),
    }


def test_lists_of_captions_and_named_columns(tmp_path: Path) -> None:
    objects = [[{"raw": "a"}, {"raw": None}], [{"raw": "b"}, None]]
    data = table(2, id=[7, 8], texts=[["a", " ", "b "], ["c"]], objects=objects)
    data = data.rename_column("image", "photo")
    path = write(tmp_path / "a.parquet", data.add_column("split", ["train", "train"]))
    assert captions(path) == {"train[0]": ("a 0",), "train[1]": ("a 1",)}
    assert captions(path, image_column="photo", caption_column="texts") == {
        "train[0]": ("a", "b"),
        "train[1]": ("c",),
    }
    with pytest.raises(UserError, match=r"train\[0\]: 'id' must be a string or a list of strings, got 7$"):
        captions(path, caption_column="id")
    assert captions(path, caption_column="objects") == {"train[0]": ("a",), "train[1]": ("b",)}
    with pytest.raises(UserError, match=r"column 'id' is of type Value\('int64'\), expected images or"):
        captions(path, image_column="id")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), None])
def test_parquet_written_by_other_libraries(tmp_path: Path, kind: pa.DataType | None) -> None:
    contents = [png(i) for i in range(3)]
    images = pa.array(contents, kind) if kind else pa.array([{"bytes": data} for data in contents])
    columns = {"image": images, "text": ["a", "b", "c"], "split": ["val"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = [image.load().getpixel((0, 0)) for image in load(tmp_path / "a.parquet", "val")]
    assert found == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


@pytest.mark.parametrize(
    ("pattern", "splits"),
    [
        ("{}-00000-of-00001.parquet", ["train", "validation", "test"]),
        ("data/{}.parquet", ["training", "valid", "testing"]),
        ("{}/0000.parquet", ["train", "dev", "test"]),
        ("data/{}-0.parquet", ["training", "dev", "eval"]),
    ],
)
def test_a_folder_of_parquet_files_by_split(tmp_path: Path, pattern: str, splits: list[str]) -> None:
    for first, name in enumerate(splits):
        write(tmp_path / "pets" / pattern.format(name), table(1, first))
    save_image(tmp_path / "pets" / "photo.jpg")  # other files in the folder are not read
    (tmp_path / "pets" / "dataset_info.json").write_text("{}")  # as `download_and_prepare` writes it
    assert not is_saved_dataset(tmp_path / "pets")
    assert {split: captions(tmp_path / "pets", split) for split in ("train", "val", "test")} == {
        "train": {"train[0]": ("a 0",)},
        "val": {"val[0]": ("a 1",)},
        "test": {"test[0]": ("a 2",)},
    }


def test_saved_datasets(tmp_path: Path) -> None:
    table(30).with_format("numpy").save_to_disk(tmp_path / "one")
    assert len(captions(tmp_path / "one") | captions(tmp_path / "one", "val")) == 30
    datasets.DatasetDict(train=table(2), val=table(1, 2)).save_to_disk(tmp_path / "several")
    assert captions(tmp_path / "several", "val") == {"val[0]": ("a 2",)}
    with pytest.raises(MissingSplitError, match=r"split 'test'; it has 'train' \(2\), 'val' \(1\)$"):
        captions(tmp_path / "several", "test")
    datasets.DatasetDict(test=table(2)).save_to_disk(tmp_path / "test")
    assert len(captions(tmp_path / "test", "test")) == 2
    with pytest.raises(MissingSplitError, match=r"split 'train'; it has 'test' \(2\)"):
        captions(tmp_path / "test")
    datasets.DatasetDict(val=table(1), validation=table(1)).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match="several splits named 'val': val, validation"):
        captions(tmp_path / "both", "val")


def test_a_split_column_divides_a_single_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(3, split=["train", "test", "validation"]))
    assert [captions(path, split) for split in ("train", "val", "test")] == [
        {"train[0]": ("a 0",)},
        {"train[2]": ("a 2",)},
        {"train[1]": ("a 1",)},
    ]


def test_rows_with_the_same_image_are_joined(tmp_path: Path) -> None:
    one, two = b"1" * 100, b"2" * 100  # different images of the same size
    given = [(one, "1.png"), (two, "1.png"), (one, "1.png"), (one, "2.png"), (one, None), (one, None)]
    same = [{"bytes": content, "path": path} for content, path in given]
    data = table(6, image=same, caption=list("abcdef"), split=["val"] * 6)
    assert captions(write(tmp_path / "a.parquet", data), "val") == {
        "train[0]": ("a", "c"),
        "train[1]": ("b",),
        "train[3]": ("d",),
        "train[4]": ("e", "f"),
    }


def test_file_names_in_tables(tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "a.png", (9, 8, 7))
    columns = {"path": ["a.png", "./a.png"], "caption": ["a", "b"], "split": ["val"] * 2}
    data = datasets.Dataset.from_dict(columns)
    path = write(tmp_path / "photos" / "a.parquet", data)
    expected = [CaptionedImage("a.png", ("a", "b"), tmp_path / "photos" / "a.png")]
    assert list(load_captioned_images(path, "val")) == expected
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of split .* are missing \(.*saved/a\.png"):
        load_captioned_images(tmp_path / "saved", "val")
    found = load_captioned_images(tmp_path / "saved", "val", image_root=tmp_path / "photos")
    assert list(found) == expected


def test_images_that_are_only_paths(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (9, 8, 7))
    images = [{"bytes": None, "path": "a.png"}, {"bytes": png(3), "path": "b.png"}]
    data = table(2, image=images, split=["val"] * 2)
    pq.write_table(data.data.table, tmp_path / "a.parquet")  # to_parquet would embed the file
    found = {image.name: image.load().getpixel((0, 0)) for image in load(tmp_path / "a.parquet", "val")}
    assert found == {"a.png": (9, 8, 7), "train[1]": (3, 0, 0)}


def test_rows_without_an_image_or_a_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2, image=[{"bytes": png(0), "path": None}, None]))
    with pytest.raises(UserError, match=r"train\[1\]: 'image' must be a file name, got None$"):
        captions(path)
    path = write(tmp_path / "b.parquet", table(2, caption=["a", None], split=["val"] * 2))
    assert captions(path, "val") == {"train[0]": ("a",)}


def test_table_images_are_decoded_like_files(tmp_path: Path) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(file, "JPEG", exif=exif)
    images = [{"bytes": content, "path": None} for content in (file.getvalue(), b"nonsense")]
    path = write(tmp_path / "a.parquet", table(2, image=images, split=["val"] * 2))
    turned, bad = load(path, "val")
    assert turned.load().size == (10, 20)
    with pytest.raises(UnreadableImageError, match=r"^cannot read train\[1\]: it is not an"):
        bad.load()


def test_unreadable_tables(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"^cannot read '.*bad\.parquet': Parquet magic bytes not found"):
        captions(tmp_path / "bad.parquet")


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def load_dataset(name: str, config: str | None) -> datasets.DatasetDict:
        requested.append((name, config))
        names = datasets.Dataset.from_dict({"path": ["a.png"], "caption": ["a"]})
        return datasets.DatasetDict(train=table(2), validation=table(1), test=names)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        assert len(load_captioned_images("org/pets", "train")) == 2
        assert len(load_captioned_images("org/pets:small", "val")) == 1
        with pytest.raises(UserError, match=r"test has file names, such as a\.png: give --image_root"):
            load("org/pets", "test")
    assert requested == [("org/pets", None), ("org/pets", "small"), ("org/pets", None)]
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no such dataset on the Hub: 'org/pets': .*org/pets"):
        load("org/pets")


def test_hub_dataset_names() -> None:
    assert all(map(is_hub_name, ["org/name", "my-org/name_1.0:config"]))
    others = ["name", "./name", "../name", "/org/name", "org/name/", "a/b/c", "C:/name"]
    assert not any(map(is_hub_name, others))


def test_worker_processes_read_tables_and_pickles_do_not_contain_images(tmp_path: Path) -> None:
    noise = [{"bytes": os.urandom(100_000), "path": None} for _ in range(20)]
    path = write(tmp_path / "a.parquet", table(20, image=noise, split=["val"] * 20))
    images = load_captioned_images(path, "val")
    pickled = pickle.dumps(images)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled)[7].source == noise[7]["bytes"]
    loader: Any = DataLoader(images, batch_size=None, num_workers=1, collate_fn=_content)
    assert list(loader) == [image["bytes"] for image in noise]


def _content(image: CaptionedImage) -> bytes:
    return image.read()
