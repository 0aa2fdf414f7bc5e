import math
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_models import IMAGE_SIZE, VISION
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.scenes import read_scenes
from ituning_hf.features.build import BuildError, build_features
from ituning_hf.features.encoder import describe_encoder
from ituning_hf.features.plan import cut, plan_build
from ituning_hf.features.store import FeatureStore

from .conftest import Build, contents, save_picture, shards


@given(st.lists(st.integers()), st.integers(1, 20))
def test_shards_are_whole_but_the_last(numbers: list[int], size: int):
    parts = cut(numbers, size)
    assert [number for part in parts for number in part] == numbers
    assert len(parts) == math.ceil(len(numbers) / size)
    assert all(len(part) == size for part in parts[:-1])
    assert all(parts)


@given(st.integers(0, 40), st.integers(0, 8), st.integers(1, 9))
def test_a_build_that_goes_on_has_the_shards_that_are_left(count: int, done: int, size: int):
    whole = cut(range(count), size)
    written = {number for shard in whole[:done] for number in shard}
    assert cut([n for n in range(count) if n not in written], size) == whole[done:]


def test_what_a_build_says(build: Build, train: list[CaptionedImage], folder: Path):
    plans: list[Any] = []
    result = build(train, on_plan=plans.append)
    assert (result.present, result.encoded, result.unreadable) == (0, 11, {})
    assert result.num_bytes == sum(path.stat().st_size for path in shards(folder))
    (plan,) = plans
    assert [len(shard) for shard in plan.shards] == [5, 5, 1]
    assert 0.7 * plan.num_bytes < result.num_bytes < plan.num_bytes
    assert sorted(contents(folder)) == [".lock", *(path.name for path in shards(folder)), "store.json"]


def test_again_there_is_nothing_to_do(build: Build, train: list[CaptionedImage], folder: Path):
    build(train)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    result = build(train)
    assert (result.present, result.encoded, result.num_bytes) == (11, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_any_two_builds_give_the_same_bytes(build: Build, train: list[CaptionedImage], folder: Path):
    build(train)
    build(train, folder / "again", num_workers=2)
    again = contents(folder / "again")
    assert again == {name: content for name, content in contents(folder).items() if "/" not in name}


def test_a_split_is_added_later(
    build: Build, train: list[CaptionedImage], val: list[CaptionedImage], folder: Path
):
    build(train)
    before = contents(folder)
    result = build([*train, *val])
    after = contents(folder)
    assert (result.present, result.encoded) == (11, 3)
    assert {name: after[name] for name in before} == before
    assert len(shards(folder)) == 4
    assert FeatureStore(folder).names == {record.name for record in [*train, *val]}


def test_a_grown_data_set_gets_what_it_lacks(build: Build, folder: Path):
    build(read_scenes("train", 7))
    result = build(read_scenes("train", 12))
    assert (result.present, result.encoded) == (7, 5)
    FeatureStore(folder).require(read_scenes("train", 12))


def test_an_image_that_is_given_twice_is_encoded_once(
    build: Build, train: list[CaptionedImage], folder: Path
):
    assert build([*train, *train]).encoded == 11


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_build_that_was_stopped_goes_on(
    build: Build,
    train: list[CaptionedImage],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
):
    build(train)
    whole = contents(folder)
    shutil.rmtree(folder)
    write, written = build_module().write_shard, []

    def stopping(*arguments: Any) -> Path:
        if len(written) == stop_at:
            raise KeyboardInterrupt
        written.append(write(*arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr("ituning_hf.features.build.write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(train)
    assert len(shards(folder)) == stop_at
    assert build(train).present == 5 * stop_at
    assert contents(folder) == whole


def build_module() -> Any:
    import ituning_hf.features.build

    return ituning_hf.features.build


def test_unreadable_pictures_are_accounted_for(
    build: Build,
    train: list[CaptionedImage],
    folder: Path,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
):
    build(train, storage="float32")
    good = {record.name: FeatureStore(folder).read(record.name) for record in train}
    shutil.rmtree(folder)
    broken = photos / "train" / "4.bmp"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    result = build(train, storage="float32")
    assert (result.encoded, list(result.unreadable)) == (10, ["train/4.bmp"])
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"skipped: cannot read {broken}: ")
    store = FeatureStore(folder)
    assert store.names == good.keys() - {"train/4.bmp"}
    for name in store.names:  # to the last bit: no image was in another place of its batch
        assert torch.equal(store.read(name), good[name])

    before = contents(folder)
    result = build(train, storage="float32")
    assert (result.present, result.encoded, result.unreadable) == (11, 0, {})
    assert contents(folder) == before

    broken.write_bytes(content)
    result = build(train, storage="float32")
    assert (result.present, result.encoded) == (10, 1)
    store = FeatureStore(folder)
    assert store.unreadable == {}
    torch.testing.assert_close(store.read("train/4.bmp"), good["train/4.bmp"])
    assert build(train, storage="float32").encoded == 0


def test_a_picture_that_is_broken_in_another_way_is_tried_again_once(
    build: Build, train: list[CaptionedImage], folder: Path, photos: Path
):
    for content in (b"", b"no picture", b"nor is it"):
        (photos / "train" / "4.bmp").write_bytes(content)
        assert list(build(train).unreadable) == ["train/4.bmp"]
        assert build(train).unreadable == {}
    assert FeatureStore(folder).unreadable.keys() == {"train/4.bmp"}


def test_a_picture_that_goes_away_is_tried_again_when_it_is_back(
    build: Build, train: list[CaptionedImage], folder: Path, photos: Path
):
    away = (photos / "train" / "4.bmp").rename(photos / "away.bmp")
    assert "there is no such file" in build(train).unreadable["train/4.bmp"]
    assert build(train).encoded == 0
    away.rename(photos / "train" / "4.bmp")
    assert build(train).encoded == 1


def test_changed_pictures_are_refused(build: Build, train: list[CaptionedImage], folder: Path, photos: Path):
    build(train)
    before = contents(folder)
    save_picture(photos / "train" / "4.bmp", seed=9)
    with pytest.raises(
        ValueError,
        match=r"other pictures than 1 of the 11 images have now \('train/4.bmp'\): if the pictures were "
        r"changed, remove the store and build it anew; if it is another data set's, build into another",
    ):
        build(train)
    assert contents(folder) == before


def test_two_pictures_of_one_name_are_refused(build: Build, photos: Path, folder: Path):
    files = [photos / "train" / "0.bmp", photos / "val" / "0.bmp"]
    with pytest.raises(ValueError, match=r"two different pictures have the name '0.bmp', .*\(--splits\)"):
        build([CaptionedImage("0.bmp", ("a",), file) for file in files])
    assert not folder.exists()
    shutil.copy(*files)
    build([CaptionedImage("0.bmp", ("a",), file) for file in files])


def test_a_store_of_something_else_is_refused_before_anything_is_encoded(
    build: Build, train: list[CaptionedImage], folder: Path, tmp_path: Path, backbones, monkeypatch
):
    build(train)
    before = contents(folder)
    torch.manual_seed(8)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "other")
    shutil.copy(backbones["vision"] / "preprocessor_config.json", tmp_path / "other")
    shutil.copytree(backbones["vision"], tmp_path / "prepared")
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=crop).save_pretrained(tmp_path / "prepared")
    monkeypatch.setattr("ituning_hf.features.build.Encoder", None)
    for options, problem in (
        ({"vision_model": tmp_path / "other"}, "vision_model_fingerprint"),
        ({"vision_model": tmp_path / "prepared"}, r"image_processor\.size"),
        ({"vision_feature_layer": 0}, "vision_feature_layer -1, not 0"),
        ({"storage": "int8"}, "storage 'bfloat16', not 'int8'"),
        ({"mixed_precision": "bf16"}, "mixed_precision 'no', not 'bf16'"),
    ):
        with pytest.raises(ValueError, match=f"was made otherwise: {problem}"):
            build(train, **options)
    assert contents(folder) == before


def test_a_folder_of_other_things_is_left_alone(build: Build, train: list[CaptionedImage], folder: Path):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files, and no store of features: give another folder"):
        build(train)
    assert os.listdir(folder) == ["notes.txt"]


def test_a_file_in_the_folders_place(build: Build, train: list[CaptionedImage], folder: Path):
    folder.write_text("mine")
    with pytest.raises(OSError, match="cannot be written to"):
        build(train)


def test_two_builds_at_once(build: Build, train: list[CaptionedImage], folder: Path):
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(FileExistsError, match="another build is at work in"):
        build(train)
    build(train)


def test_what_a_killed_build_left_is_swept(build: Build, train: list[CaptionedImage], folder: Path):
    build(train)
    whole = contents(folder)
    (folder / f".{shards(folder)[0].name}.partial").write_bytes(b"half")
    build(train)
    assert contents(folder) == whole


def test_too_small_a_disk_is_told_before_anything_is_written(
    build: Build, train: list[CaptionedImage], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "ituning_hf.features.plan.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 6500)
    )
    with pytest.raises(
        OSError, match=r"features of 11 images take 6\.6 kB, and the disk of .* has 6\.5 kB left: make room"
    ):
        build(train)
    assert not folder.exists()


def test_a_disk_that_is_full_on_the_way(build: Build, train: list[CaptionedImage], folder: Path):
    """The kernel lets no file grow so far, as if the disk had no room."""
    build(train)
    whole = contents(folder)
    last = min(path.stat().st_size for path in shards(folder))
    shutil.rmtree(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    build(train[:5])
    resource.setrlimit(resource.RLIMIT_FSIZE, (last - 1, limits[1]))
    try:
        with pytest.raises(
            BuildError, match=r"could not be written to .*whole: make room .* by the same command"
        ):
            build(train)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.glob(".*.partial"))
    assert build(train).present == 5
    assert contents(folder) == whole


def test_features_that_are_not_finite_are_not_stored(
    build: Build, train: list[CaptionedImage], folder: Path, tmp_path: Path, backbones
):
    model = CLIPVisionModel.from_pretrained(backbones["vision"])
    with torch.no_grad():
        model.embeddings.class_embedding.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    shutil.copy(backbones["vision"] / "preprocessor_config.json", tmp_path / "nan")
    with pytest.raises(BuildError, match=r"among train/0\.bmp and those after it: .* are not finite"):
        build(train, vision_model=tmp_path / "nan")
    assert shards(folder) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_settings_out_of_range(
    build: Build, train: list[CaptionedImage], folder: Path, options: dict[str, Any], problem: str
):
    with pytest.raises(ValueError, match=problem):
        build(train, **options)
    assert not folder.exists()


def test_a_plan_of_coco_is_its_size_on_disk(backbones: dict[str, Path], tmp_path: Path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=768, num_hidden_layers=1, patch_size=16)
    CLIPVisionModel(config).save_pretrained(tmp_path / "vit")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "vit")
    spec = describe_encoder(tmp_path / "vit")
    records = read_scenes("train", 3)
    plan = plan_build(records, tmp_path / "store", spec)
    assert plan.num_bytes == 3 * (197 * 768 * 2 + 300)
    build_features(records, tmp_path / "store", vision_model=tmp_path / "vit", num_workers=0, device="cpu")
    assert FeatureStore(tmp_path / "store").num_bytes == pytest.approx(plan.num_bytes, rel=0.001)


def test_no_more_than_a_shard_is_in_memory(tmp_path: Path):
    """40 MB of features, in shards of 4 MB."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(**VISION | {"hidden_size": 600, "patch_size": 3, "num_hidden_layers": 1})
    CLIPVisionModel(config).save_pretrained(tmp_path / "vit")
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=crop).save_pretrained(
        tmp_path / "vit"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    records = [CaptionedImage(str(i), ("a",), tmp_path / "a.bmp") for i in range(330)]
    settings = {"vision_model": tmp_path / "vit", "batch_size": 4, "num_workers": 0, "device": "cpu"}
    build_features(records[:33], tmp_path / "store", shard_size=33, **settings)  # what is kept from then on
    peaks = []
    process = psutil.Process()
    with pytest.MonkeyPatch.context() as patch:
        write = build_module().write_shard

        def watching(*arguments: Any) -> Path:
            peaks.append(process.memory_info().rss)
            return write(*arguments)

        patch.setattr("ituning_hf.features.build.write_shard", watching)
        build_features(records, tmp_path / "store", shard_size=33, **settings)
    assert FeatureStore(tmp_path / "store").num_bytes > 39e6
    assert len(peaks) == 9
    assert peaks[-1] - peaks[0] < 12e6
