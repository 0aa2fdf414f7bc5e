"""Building a store: encoding, skipping, refusals and interruptions."""

import math
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from small_models import IMAGE_SIZE, VISION, contents
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from ituning_hf.data.columns import CaptionedImages
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.inputs import PixelInputs
from ituning_hf.data.scenes import read_scenes
from ituning_hf.features.arguments import BuildArguments
from ituning_hf.features.build import build_features, plan_build
from ituning_hf.features.store import FeatureStore
from ituning_hf.utils.errors import UserError, WorkError
from ituning_hf.utils.ranks import Rank

from .conftest import Build, Records, save_noise, shards

WRITE_SHARD = "ituning_hf.features.build._write_shard"


def test_a_build_writes_shards_and_a_spec_and_a_split_is_added_later(
    build: Build, train: Records, val: Records, folder: Path
):
    assert build(train) == 11
    assert sorted(contents(folder)) == [".lock", *(path.name for path in shards(folder)), "store.json"]
    assert len(shards(folder)) == 3
    before = contents(folder)
    assert build(train) == 0
    assert contents(folder) == before
    both = CaptionedImages.concatenate([train, val])
    assert build(both) == 3
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert len(shards(folder)) == 4
    FeatureStore(folder).require(both)


def test_builds_have_the_same_bytes_with_and_without_workers(build: Build, train: Records, folder: Path):
    build(train)
    build(train, folder / "again", dataloader_num_workers=2)
    again = contents(folder / "again")
    assert again == {name: content for name, content in contents(folder).items() if "/" not in name}


def test_a_removed_shard_is_built_again(build: Build, train: Records, folder: Path):
    build(train)
    whole = contents(folder)
    path = next(path for path in shards(folder) if len(pa.ipc.open_file(path).get_batch(0)) == 5)
    (folder / f".{path.name}.host-1.partial").write_bytes(b"half")  # of a killed build
    (folder / "my notes.partial").write_text("mine")
    path.unlink()
    assert build(train) == 5
    assert contents(folder) == whole | {"my notes.partial": b"mine"}


@pytest.mark.parametrize("stop_at", [0, 1, 2])
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_stopped_build_resumes_to_the_same_files(
    build: Build, train: Records, folder: Path, photos: Path, monkeypatch, stop_at: int, storage: str
):
    (photos / "train" / "2.bmp").write_bytes(b"not an image")
    build(train, folder / "whole", storage=storage)
    from ituning_hf.features.build import _write_shard

    def stopping(*arguments: Any) -> int:
        if len(shards(folder / "stopped")) == stop_at:
            raise KeyboardInterrupt
        return _write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(WRITE_SHARD, stopping)
        with pytest.raises(KeyboardInterrupt):
            build(train, folder / "stopped", storage=storage)
    assert len(shards(folder / "stopped")) == stop_at
    assert build(train, folder / "stopped", storage=storage) <= 11 - 5 * stop_at
    assert contents(folder / "stopped") == contents(folder / "whole")


def test_unreadable_images_are_skipped_and_tried_again(
    build: Build, train: Records, folder: Path, photos: Path, caplog: pytest.LogCaptureFixture
):
    build(train, folder / "good", storage="float32")
    good = FeatureStore(folder / "good")
    broken, name = photos / "train" / "4.bmp", "train/4.bmp"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    into = folder / "store"
    assert build(train, into, storage="float32") == 10
    assert [message.startswith(f"skipped: cannot read {broken}: ") for message in caplog.messages] == [True]
    store = FeatureStore(into)
    others = [image.name for image in train if image.name != name]
    assert len(store) == len(others)
    assert store.unreadable.keys() == {name}
    store.require(train)
    with pytest.raises(UnreadableImageError, match=r"cannot read .*4\.bmp"):
        store.read(name)
    for other in others:  # bit-identical: no image changed its position in a batch
        assert torch.equal(store.read(other), good.read(other))

    before = contents(into)
    broken.write_bytes(b"still not an image")
    assert build(train, into, storage="float32") == 0
    assert contents(into) == before

    broken.write_bytes(content)
    assert build(train, into, storage="float32") == 1
    store = FeatureStore(into)
    assert store.unreadable == {}
    torch.testing.assert_close(store.read(name), good.read(name))
    assert build(train, into, storage="float32") == 0


def test_changed_images_are_refused(build: Build, train: Records, folder: Path, photos: Path):
    build(train)
    before = contents(folder)
    save_noise(photos / "train" / "4.bmp", seed=9)
    with pytest.raises(
        UserError, match=r"1 of 11 compared images differ .*\(train/4\.bmp\): build a new store"
    ):
        build(train)
    assert contents(folder) == before


def test_images_with_the_same_name_are_refused(build: Build, train: Records, folder: Path):
    with pytest.raises(UserError, match=r"several images have the name 'train/0\.bmp'"):
        build(CaptionedImages.concatenate([train, train[:2]]))
    assert not folder.exists()


def save_encoder(folder: Path, size: int = IMAGE_SIZE, **config: Any) -> Path:
    CLIPVisionModel(CLIPVisionConfig(**VISION | config)).save_pretrained(folder)
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)
    return folder


def test_other_settings_are_refused_before_anything_is_encoded(
    build: Build, train: Records, folder: Path, tmp_path: Path, backbones, monkeypatch
):
    build(train)
    before = contents(folder)
    torch.manual_seed(8)
    other = save_encoder(tmp_path / "other")
    prepared = save_encoder(shutil.copytree(backbones["vision"], tmp_path / "prepared"), size=40)
    shutil.copy(backbones["vision"] / "model.safetensors", prepared)
    monkeypatch.setattr("ituning_hf.features.build.load_backbone", None)
    for options, problem in (
        ({"vision_model": other}, "vision_model_fingerprint"),
        ({"vision_model": prepared}, r"image_processor\.size"),
        ({"vision_feature_layer": 0}, "vision_feature_layer 2, not 0"),
        ({"storage": "int8"}, "storage 'bfloat16', not 'int8'"),
        ({"mixed_precision": "bf16"}, "mixed_precision 'no', not 'bf16'"),
    ):
        with pytest.raises(UserError, match=f"were computed with other settings: {problem}"):
            build(train, **options)
    assert contents(folder) == before
    for options in ({"storage": "int4"}, {"mixed_precision": "fp8"}, {"device": "abacus"}):
        with pytest.raises(ValueError, match=f"'{next(iter(options.values()))}'"):
            build(train, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_unusable_folders_are_refused(build: Build, train: Records, folder: Path):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a feature store: give another folder"):
        build(train)
    assert os.listdir(folder) == ["notes.txt"]
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(OSError, match="cannot be written to"):
        build(train)


def test_too_small_a_disk_is_refused_before_anything_is_written(
    build: Build, train: Records, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    small = shutil._ntuple_diskusage(10**6, 0, 3000)
    monkeypatch.setattr("ituning_hf.features.build.shutil.disk_usage", lambda path: small)
    with pytest.raises(OSError, match=r"features of 11 images take 3\.3 kB, .* has only 3\.0 kB left: free"):
        build(train)
    assert not folder.exists()


def test_a_build_resumes_after_the_disk_was_full(build: Build, train: Records, folder: Path):
    """The kernel limits the size of files, as if the disk were full."""
    build(train)
    whole = contents(folder)
    shutil.rmtree(folder)
    build(train[:5])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    smallest = min(len(content) for name, content in whole.items() if name.endswith(".arrow"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (smallest - 1, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"cannot be written to .* run the same command to resume"):
            build(train)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.glob(".*.partial"))
    assert build(train) == 6
    assert contents(folder) == whole


def test_a_cpu_computes_in_fp32(build: Build, train: Records, tmp_path: Path):
    half = save_encoder(tmp_path / "half")
    CLIPVisionModel.from_pretrained(half).half().save_pretrained(half)
    build(train, tmp_path / "features", vision_model=half, storage="float32")
    features = FeatureStore(tmp_path / "features").read(train[0].name)
    image = PixelInputs(CLIPImageProcessorPil.from_pretrained(half)).read(train[0], epoch=0, index=0)
    encoder = CLIPVisionModel.from_pretrained(half, dtype=torch.float32)
    torch.testing.assert_close(features, encoder(image[None]).last_hidden_state[0], rtol=1e-5, atol=1e-5)


def test_non_finite_features_are_not_stored(build: Build, train: Records, folder: Path, tmp_path: Path):
    vision = save_encoder(tmp_path / "nan")
    model = CLIPVisionModel.from_pretrained(vision)
    with torch.no_grad():
        model.embeddings.class_embedding.fill_(math.nan)
    model.save_pretrained(vision)
    with pytest.raises(WorkError, match=r"train/0\.bmp or the images after it are not finite"):
        build(train, vision_model=vision)
    assert shards(folder) == []


def test_the_planned_size_is_the_size_on_disk(tmp_path: Path):
    torch.manual_seed(0)
    large = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 64, "num_hidden_layers": 1}
    vision = save_encoder(tmp_path / "vit", **large)
    records = read_scenes("train", 3)
    args = BuildArguments(vision_model=str(vision), output_dir=str(tmp_path / "store"), shard_size=2)
    spec, shards_to_write = plan_build(records, args)
    assert [shard.tolist() for shard in shards_to_write] == [[0, 1], [2]]
    build_features(records, args)
    size = sum(path.stat().st_size for path in shards(tmp_path / "store"))
    assert 0 <= size - 3 * spec.num_bytes <= 2 * 1500 + 3 * 100


def test_any_number_of_processes_writes_the_files_of_one(build: Build, train: Records, folder: Path):
    build(train)
    whole = contents(folder)
    for count in (2, 3, 4):  # there are three files
        into = folder / f"of {count}"
        results = [build(train, into, rank=Rank(index, count, index)) for index in reversed(range(count))]
        assert sum(results) == 11
        assert contents(into) == whole
