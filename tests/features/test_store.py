"""Reading a store, and checking that it fits the encoder, the captioner and the images."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_families import SmallFamilies
from small_models import VISION, make_captioner
from torch.utils.data import DataLoader
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
)

from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor
from ituning_hf.data.columns import CaptionedImage, CaptionedImages
from ituning_hf.data.scenes import read_scenes
from ituning_hf.features.arguments import STORAGES, BuildArguments
from ituning_hf.features.build import plan_build
from ituning_hf.features.store import FeatureSpec, FeatureStore
from ituning_hf.utils.errors import UserError
from ituning_hf.utils.files import write_json

from .conftest import Build, Records, save_noise, shards

# --- The specification


def describe_encoder(folder: Path, **settings: Any) -> FeatureSpec:
    return plan_build(read_scenes("train", 1), BuildArguments(vision_model=str(folder), **settings))[0]


@pytest.fixture(scope="module")
def spec(backbones: dict[str, Path]) -> FeatureSpec:
    return describe_encoder(backbones["vision"])


def test_a_spec_describes_its_encoder(spec: FeatureSpec, backbones: dict[str, Path], tmp_path: Path):
    config = make_captioner(backbones).config
    fields = [f"vision_model_{field}" for field in ("name_or_path", "revision", "fingerprint")]
    assert [spec.vision_model[field] for field in fields] == [getattr(config, field) for field in fields]
    assert (spec.num_tokens, spec.hidden_size) == (10, 15)
    assert spec.num_bytes == 10 * 15 * 2
    stored = CLIPImageProcessorPil.from_dict(spec.image_processor)
    assert stored.to_dict() == CLIPImageProcessorPil.from_pretrained(backbones["vision"]).to_dict()
    write_json(tmp_path / "store.json", asdict(spec))
    assert FeatureStore(tmp_path).spec == spec


def test_the_number_of_tokens_is_that_of_prepared_images():
    config = ITuningConfig(vision_config=Dinov2Config(image_size=70, patch_size=14))
    crop = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 42})
    spec = FeatureSpec.of(config, crop.to_dict(), "bfloat16", "no")
    assert spec.num_tokens == 1 + 2 * 3
    assert spec.make_image_processor().to_dict() == crop.to_dict()


def test_bytes_of_an_image(spec: FeatureSpec):
    large = [replace(spec, num_tokens=197, hidden_size=768, storage=storage) for storage in STORAGES]
    sizes = {"bfloat16": 302_592, "int8": 152_084, "float32": 605_184}  # those in the command's help
    assert {spec.storage: spec.num_bytes for spec in large} == sizes


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "No such file"), ("", "is not JSON"), ("[]", "mapping"), ("{}", "missing")]
)
def test_a_damaged_spec_is_refused(tmp_path: Path, text: str | None, problem: str):
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    with pytest.raises(UserError, match=rf"is not a feature store \(.*{problem}.*: create one by "):
        FeatureStore(tmp_path)


def test_the_path_of_the_encoder_does_not_matter(spec: FeatureSpec, backbones: dict[str, Path]):
    layer = VISION["num_hidden_layers"]
    other = describe_encoder(backbones["clip"], vision_feature_layer=layer)
    assert other.vision_model != spec.vision_model
    preparation = spec.image_processor | {"image_processor_type": "CLIPImageProcessorOfTomorrow"}
    assert spec.computation == replace(other, image_processor=preparation).computation


@pytest.mark.parametrize(("encoder", "layers"), [("clip", [2, 1, 2]), ("vit", [-1, 1, 2])])
def test_a_normed_output_differs_from_the_last_layer(
    families: SmallFamilies, encoder: str, layers: list[int]
):
    for given, found in zip([-1, -2, 2], layers, strict=True):
        spec = describe_encoder(families[encoder], vision_feature_layer=given)
        assert spec.computation["vision_feature_layer"] == found


# Listed literally: omitting a field would accept features of another computation.
ENCODER_FIELDS = {
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "hidden_act": "gelu",
    "layer_norm_eps": 0.5,
    "image_size": 60,
}
IMAGE_PROCESSOR_FIELDS = [
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
]


def test_each_field_of_encoder_and_image_processor_must_be_equal(spec: FeatureSpec):
    def changed(**fields: Any) -> dict[str, Any]:
        pairs = replace(spec, **fields).computation.items()
        return {name: value for name, value in pairs if value != spec.computation[name]}

    for name, value in ENCODER_FIELDS.items():
        config = spec.vision_model["vision_config"] | {name: value}
        found = changed(vision_model=spec.vision_model | {"vision_config": config})
        assert found[f"vision_config.{name}"] == value
    for name in IMAGE_PROCESSOR_FIELDS:
        found = changed(image_processor=spec.image_processor | {name: 1789})
        assert found == {f"image_processor.{name}": 1789}


def test_a_store_must_fit_the_captioner(store: FeatureStore, backbones: dict[str, Path], tmp_path: Path):
    processor = CLIPImageProcessorPil.from_pretrained(backbones["vision"]).to_dict()
    for layer in (-1, VISION["num_hidden_layers"]):
        store.require_fits(make_captioner(backbones, vision_feature_layer=layer).config, processor)
    config = make_captioner(backbones).config
    with pytest.raises(UserError, match=r"with other settings: vision_feature_layer 2, not 0\. "):
        store.require_fits(make_captioner(backbones, vision_feature_layer=0).config, processor)
    with pytest.raises(UserError, match=r"image_processor\.do_center_crop True, not False\. "):
        store.require_fits(config, processor | {"do_center_crop": False})
    torch.manual_seed(8)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "vision")
    other = make_captioner(backbones | {"vision": tmp_path / "vision"}).config
    with pytest.raises(UserError, match=r"vision_model_fingerprint '.*', not '"):
        store.require_fits(other, processor)


# --- Reading


def encode(model: ITuningForCaptioning, processor: ITuningProcessor, records: Records) -> Any:
    images = [record.load() for record in records]
    return model.get_image_features(processor(images=images, return_tensors="pt")["pixel_values"])


def read_all(store: FeatureStore, records: Records) -> torch.Tensor:
    return torch.stack([store.read(record.name) for record in records])


def test_features_equal_those_of_the_captioner(
    build: Build, train: Records, folder: Path, backbones, processor: ITuningProcessor
):
    found = {}
    for storage in STORAGES:  # one batch of all images: other batches differ by rounding
        build(train, folder / storage, storage=storage, batch_size=11, shard_size=11)
        store = FeatureStore(folder / storage)
        found[storage] = read_all(store, train)
        assert torch.equal(store.blank(), torch.zeros_like(found[storage][0]))
    expected = encode(make_captioner(backbones), processor, train)
    assert torch.equal(found["float32"], expected)
    assert torch.equal(found["bfloat16"], expected.to(torch.bfloat16))
    assert found["int8"].dtype == torch.bfloat16
    largest = expected.abs().amax(dim=-1, keepdim=True)
    assert ((found["int8"].float() - expected).abs() <= largest * (1 / 254 + 1 / 256)).all()
    assert (found["int8"].float() - expected).abs().max() > 0


def test_another_layer_and_precision(
    build: Build, train: Records, folder: Path, backbones, processor: ITuningProcessor
):
    options = {"storage": "float32", "batch_size": 11, "shard_size": 11}
    build(train, vision_feature_layer=1, mixed_precision="bf16", **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = encode(make_captioner(backbones, vision_feature_layer=1), processor, train)
    assert torch.equal(read_all(FeatureStore(folder), train), expected.float())
    assert not torch.equal(expected.float(), encode(make_captioner(backbones), processor, train))


def test_read_returns_a_copy(store: FeatureStore, train: Records):
    features = store.read(train[0].name)
    assert features.untyped_storage().nbytes() == 10 * 15 * 2
    kept = features.clone()
    features.zero_()
    assert torch.equal(store.read(train[0].name), kept)


def test_workers_threads_and_pickles_read_the_same(store: FeatureStore, train: Records):
    expected = read_all(store, train)  # the files are open now
    reader: Any = DataLoader(train, batch_size=4, num_workers=1, collate_fn=partial(read_all, store))
    assert torch.equal(torch.cat(list(reader)), expected)
    pickled = pickle.dumps(store)
    assert len(pickled) < 5000
    assert torch.equal(read_all(pickle.loads(pickled), train), expected)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(FeatureStore(store.folder).read, [record.name for record in train] * 20))
    assert torch.equal(torch.stack(found), expected.repeat(20, 1, 1))


def test_damaged_and_missing_shards_are_named(store: FeatureStore, folder: Path, train: Records):
    path = shards(folder)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        FeatureStore(folder)
    path.unlink()
    assert store.read(train[0].name).shape == (10, 15)  # it is still mapped
    with pytest.raises(UserError, match=r"no features of \d+ of the 11 images"):
        FeatureStore(folder).require(train)


# --- The images


def test_missing_features_are_named_and_the_image_files_may_be_gone(
    store: FeatureStore, train: Records, val: Records, photos: Path
):
    shutil.rmtree(photos)
    store.require(train)
    assert store.read(train[0].name).shape == (10, 15)
    with pytest.raises(UserError, match=r"no features of 3 of the 14 images \('val/0.bmp', 'val/1"):
        store.require(CaptionedImages.concatenate([train, val]))
    with pytest.raises(UserError, match=r"has no features of 'val/0.bmp'"):
        store.read("val/0.bmp")


def test_all_sizes_and_some_contents_are_compared(
    build: Build, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ituning_hf.features.store._COMPARED_CONTENTS", 4)
    records = []
    for i in range(12):
        save_noise(tmp_path / f"{i}.bmp", seed=i)
        records.append(CaptionedImage(f"{i}.bmp", ("a",), tmp_path / f"{i}.bmp"))
    images = CaptionedImages.from_images(records)
    build(images)
    store = FeatureStore(folder)
    save_noise(tmp_path / "1.bmp", seed=99)  # not one of 0, 4, 8
    store.require(images)
    Image.new("RGB", (9, 9)).save(tmp_path / "1.bmp")
    with pytest.raises(UserError, match=r"1 of 12 compared images differ from those in .* \(1\.bmp\)"):
        store.require(images)
    save_noise(tmp_path / "8.bmp", seed=100)
    with pytest.raises(
        UserError, match=r"2 of 12 compared images differ from those in .* \(1\.bmp, 8\.bmp\)"
    ):
        store.require(images)


def test_scenes_of_another_seed_are_refused(build: Build, folder: Path):
    build(read_scenes("train", 5))
    store = FeatureStore(folder)
    store.require(read_scenes("train", 3))
    with pytest.raises(UserError, match="5 of 5 compared images differ"):
        store.require(read_scenes("train", 5, seed=1))


def test_the_fingerprint_depends_on_images_and_computation_alone(
    store: FeatureStore, build: Build, train: Records, photos: Path, tmp_path: Path
):
    fingerprint = store.fingerprint(train)
    assert store.fingerprint(train[:5]) != fingerprint
    build(train[::-1], tmp_path / "other order")
    assert FeatureStore(tmp_path / "other order").fingerprint(train) == fingerprint
    build(train, tmp_path / "int8", storage="int8")
    assert FeatureStore(tmp_path / "int8").fingerprint(train) != fingerprint
    save_noise(photos / "train" / "0.bmp", seed=77)
    build(train, tmp_path / "other image")
    assert FeatureStore(tmp_path / "other image").fingerprint(train) != fingerprint
