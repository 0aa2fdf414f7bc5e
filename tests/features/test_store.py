import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import edit_json, make_captioner
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from ituning_hf import ITuningProcessor
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.scenes import read_scenes
from ituning_hf.features.store import FeatureStore

from .conftest import Build, save_picture, shards


@pytest.fixture(scope="module")
def captioner(backbones: dict[str, Path]):
    return make_captioner(backbones)


def encode(captioner, processor: ITuningProcessor, records: list[CaptionedImage]) -> torch.Tensor:
    return captioner.get_image_features(processor(images=[r.load() for r in records])["pixel_values"])


def test_what_is_stored_is_what_the_captioner_computes(
    build: Build, train: list[CaptionedImage], folder: Path, captioner, processor: ITuningProcessor
):
    # One batch for all of them: rows of other batches differ by rounding.
    build(train, storage="float32", batch_size=11, shard_size=11)
    build(train, folder / "half", batch_size=11, shard_size=11)
    build(train, folder / "int8", storage="int8", batch_size=11, shard_size=11)
    expected = encode(captioner, processor, train)
    names = [record.name for record in train]
    whole, half, int8 = (FeatureStore(folder / part) for part in ("", "half", "int8"))
    assert torch.equal(torch.stack([whole.read(name) for name in names]), expected)
    assert torch.equal(torch.stack([half.read(name) for name in names]), expected.to(torch.bfloat16))
    rounded = torch.stack([int8.read(name) for name in names])
    assert rounded.dtype == torch.bfloat16
    largest = expected.abs().amax(dim=-1, keepdim=True)
    assert ((rounded.float() - expected).abs() <= largest * (1 / 254 + 1 / 256)).all()
    assert (rounded.float() - expected).abs().max() > 0


def test_another_layer_and_precision(
    build: Build, train: list[CaptionedImage], folder: Path, processor: ITuningProcessor, backbones
):
    build(
        train, vision_feature_layer=1, mixed_precision="bf16", storage="float32", batch_size=11, shard_size=11
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = encode(make_captioner(backbones, vision_feature_layer=1), processor, train)
    store = FeatureStore(folder)
    assert torch.equal(torch.stack([store.read(record.name) for record in train]), expected.float())
    assert not torch.equal(expected.float(), encode(make_captioner(backbones), processor, train))


def test_what_it_says(store: FeatureStore, train: list[CaptionedImage], folder: Path, build: Build):
    assert store.names == {record.name for record in train}
    assert store.unreadable == {}
    assert store.spec.storage == "bfloat16"
    assert store.num_bytes == sum(path.stat().st_size for path in shards(folder))
    store.require(train)


def test_what_is_read_is_the_readers_own(store: FeatureStore, train: list[CaptionedImage]):
    features = store.read(train[0].name)
    assert features.untyped_storage().nbytes() == 10 * 15 * 2
    kept = features.clone()
    features.zero_()
    assert torch.equal(store.read(train[0].name), kept)


def test_data_loaders_workers_read_it(store: FeatureStore, train: list[CaptionedImage]):
    expected = [store.read(record.name) for record in train]  # its files are open here
    reader = DataLoader(_Reader(store, [record.name for record in train]), batch_size=4, num_workers=1)
    assert torch.equal(torch.cat(list(reader)), torch.stack(expected))


class _Reader:
    def __init__(self, store: FeatureStore, names: list[str]) -> None:
        self.store, self.names = store, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.store.read(self.names[index])


def test_threads_may_share_it(store: FeatureStore, train: list[CaptionedImage]):
    names = [record.name for record in train] * 20
    expected = {name: store.read(name) for name in set(names)}
    with ThreadPoolExecutor(8) as pool:
        for name, features in zip(names, pool.map(FeatureStore(store.folder).read, names), strict=True):
            assert torch.equal(features, expected[name])


def test_it_can_be_pickled(store: FeatureStore, train: list[CaptionedImage]):
    expected = store.read(train[0].name)  # a file is open
    pickled = pickle.dumps(store)
    assert len(pickled) < 5000
    assert torch.equal(pickle.loads(pickled).read(train[0].name), expected)


def test_many_shards_take_no_file_descriptors(build: Build, train: list[CaptionedImage], folder: Path):
    build(train, shard_size=1)
    before = len(os.listdir("/proc/self/fd"))
    store = FeatureStore(folder)
    for record in train:
        store.read(record.name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_images_that_it_does_not_have(
    store: FeatureStore, train: list[CaptionedImage], val: list[CaptionedImage]
):
    with pytest.raises(
        ValueError,
        match=r"no features of 3 of the 14 images \('val/0.bmp', 'val/1.bmp', 'val/2.bmp'\): add them by",
    ):
        store.require([*train, *val])
    with pytest.raises(ValueError, match=r"has no features of 'val/0.bmp'"):
        store.read("val/0.bmp")


def test_the_pictures_may_be_gone(store: FeatureStore, train: list[CaptionedImage], photos: Path):
    shutil.rmtree(photos)
    store.require(train)
    assert store.read(train[0].name).shape == (10, 15)


def test_another_picture_of_the_same_size_in_bytes(
    store: FeatureStore, train: list[CaptionedImage], photos: Path
):
    save_picture(photos / "train" / "7.bmp", seed=999)
    with pytest.raises(
        ValueError, match=r"other pictures than 1 of the 11 images have now \('train/7.bmp'\)"
    ):
        store.require(train)


def test_of_many_pictures_the_sizes_are_compared_and_some_contents(
    build: Build, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ituning_hf.features.pictures._COMPARED_CONTENTS", 4)
    records = []
    for i in range(12):
        save_picture(tmp_path / f"{i}.bmp", seed=i)
        records.append(CaptionedImage(f"{i}.bmp", ("a",), tmp_path / f"{i}.bmp"))
    build(records)
    store = FeatureStore(folder)
    save_picture(tmp_path / "1.bmp", seed=99)  # not one of 0, 3, 6, 9
    assert store.find_changed(records) == []
    Image.new("RGB", (9, 9)).save(tmp_path / "1.bmp")
    assert store.find_changed(records) == ["1.bmp"]
    for i in range(12):
        save_picture(tmp_path / f"{i}.bmp", seed=100 + i)
    assert store.find_changed(records) == ["0.bmp", "3.bmp", "6.bmp", "9.bmp"]


def test_scenes_of_another_seed_are_other_pictures(build: Build, folder: Path):
    build(read_scenes("train", 5))
    store = FeatureStore(folder)
    store.require(read_scenes("train", 3))
    with pytest.raises(ValueError, match="other pictures than 5 of the 5 images"):
        store.require(read_scenes("train", 5, seed=1))
    with pytest.raises(ValueError, match="no features of 5 of the 5 images"):
        store.require(read_scenes("val", 5))


def test_rows_of_another_table_are_other_pictures(build: Build, folder: Path, photos: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")

    def rows(shift: int) -> list[CaptionedImage]:
        files = [photos / "train" / f"{i + shift}.bmp" for i in range(5)]
        images = [{"bytes": file.read_bytes(), "path": None} for file in files]
        table = datasets.Dataset.from_dict({"image": images, "caption": ["a"] * 5})
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"{shift}.parquet")
        return load_captioned_images(tmp_path / f"{shift}.parquet", "train")

    records = rows(0)
    assert all(record.source.num_bytes == len(record.source.read()) > 1000 for record in records)
    build(records)
    store = FeatureStore(folder)
    store.require(records)
    with pytest.raises(ValueError, match="other pictures than"):
        store.require(rows(3))


def test_damaged_shards_are_named(store: FeatureStore, folder: Path):
    path = shards(folder)[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        FeatureStore(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        FeatureStore(folder)


def test_a_shard_that_is_removed_under_the_reader(
    store: FeatureStore, train: list[CaptionedImage], folder: Path
):
    for path in shards(folder):
        path.unlink()
    with pytest.raises(ValueError, match="was there, and cannot be read any more"):
        store.read(train[0].name)


def test_a_shard_that_is_removed_is_built_again(
    store: FeatureStore, build: Build, train: list[CaptionedImage], folder: Path
):
    path = shards(folder)[1]
    content = path.read_bytes()
    path.unlink()
    build(train)
    assert path.read_bytes() == content


def test_it_fits_its_own_encoder(store: FeatureStore, captioner, backbones):
    preparation = CLIPImageProcessorPil.from_pretrained(backbones["vision"]).to_dict()
    store.require_fits(captioner.config, preparation)
    with pytest.raises(ValueError, match="vision_feature_layer -1, not 0"):
        store.require_fits(make_captioner(backbones, vision_feature_layer=0).config, preparation)
    with pytest.raises(ValueError, match=r"encoder: image_processor\.do_center_crop True, not False "):
        store.require_fits(captioner.config, preparation | {"do_center_crop": False})


@pytest.mark.parametrize("other", [{"vision_feature_layer": 1}, {"storage": "int8"}])
def test_files_of_another_store_are_refused(
    store: FeatureStore, build: Build, train: list[CaptionedImage], folder: Path, tmp_path: Path, other: dict
):
    """Of the same pictures, so that nothing else tells them apart."""
    build(train, tmp_path / "other", **other)
    shutil.copy(shards(tmp_path / "other")[0], folder)
    with pytest.raises(ValueError, match=r"was not made by what the store's description beside it says"):
        FeatureStore(folder)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_tokens", 11, "was not made by"),
        ("vision_feature_layer", 1, "was not made by"),
        ("image_processor", {}, "was not made by"),
        ("vision_config", None, r"store\.json is damaged"),
        ("image_processor", [], r"store\.json is damaged"),
    ],
)
def test_a_changed_description_is_refused(
    store: FeatureStore, folder: Path, field: str, value: Any, problem: str
):
    edit_json(folder / "store.json", **{field: value})
    with pytest.raises(ValueError, match=problem):
        FeatureStore(folder)


def test_the_encoder_may_have_another_name_in_the_description(store: FeatureStore, folder: Path):
    edit_json(folder / "store.json", vision_model_name_or_path="elsewhere", vision_feature_layer=2)
    assert FeatureStore(folder).names == store.names


def test_unreadable_pictures(build: Build, train: list[CaptionedImage], folder: Path, photos: Path):
    (photos / "train" / "4.bmp").write_bytes(b"")
    result = build(train)
    store = FeatureStore(folder)
    assert store.unreadable == result.unreadable
    assert list(store.unreadable) == ["train/4.bmp"]
    store.require(train)
    with pytest.raises(UnreadableImageError, match=r"cannot read .*4\.bmp: the file is empty"):
        store.read("train/4.bmp")
