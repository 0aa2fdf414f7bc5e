"""Training on stored features: the results of training on pictures, without pictures and vision encoder."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import run_on_two
from runs import Settings, adapter, command, differences, losses, samples
from small_models import contents, store_features, train_until
from transformers import CLIPVisionModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.features.store import FeatureStore
from ituning_hf.hub.records import read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import load_data
from ituning_hf.training.run import train

Build = Callable[..., str]

SCORED = {"eval_caption_images": 3, "num_sample_captions": 3, "eval_steps": "8", "max_train_steps": 16}


@pytest.fixture
def backbones(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The small backbones, with a copy of the encoder that a test may move or change."""
    return backbones | {"vision": shutil.copytree(backbones["vision"], tmp_path / "encoder")}


@pytest.fixture
def build(settings: Settings, tmp_path: Path) -> Build:
    """Return a function that stores features of the pictures and returns their folder."""

    def make(name: str = "features", **options: Any) -> str:
        args = settings()
        data = load_data(args)
        defaults = {"vision_model": args.vision_model, "storage": "float32"}
        store_features(tmp_path / name, [data.train, data.evaluation], **defaults | options)
        return str(tmp_path / name)

    return make


def on_features(args: TrainArguments, features: str) -> TrainArguments:
    """The same run on stored features, in another folder."""
    output_dir = f"{args.output_dir} on {Path(features).name}"
    return replace(args, vision_model=None, features=features, output_dir=output_dir)


# --- The same as on pictures


def test_features_give_the_losses_and_captions_of_pictures(
    settings: Settings,
    build: Build,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """With two batches a step, more captions of an image than are drawn, and unreadable pictures."""
    for name in ("train/4.png", "val/1.png"):
        (photos / name).write_bytes(b"no picture")
    args = settings(**SCORED, max_unreadable_share=0.4, gradient_accumulation_steps=2, captions_per_image=1)
    train(args)
    skipped = [r.getMessage() for r in caplog.records if "skipped: " in r.getMessage()]
    assert len(skipped) == 2
    stored = on_features(args, build())
    caplog.clear()
    train(stored)
    assert [r.getMessage() for r in caplog.records if "skipped: " in r.getMessage()] == skipped
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)
    assert len(losses(args)) == 16 + 3
    assert samples(stored) == samples(args)
    monkeypatch.setattr(FeatureStore, "read", lambda store, name: store.blank())
    blank = replace(stored, output_dir=args.output_dir + " blank")
    train(blank)
    assert losses(blank) != pytest.approx(losses(args), rel=1e-3)  # the pictures matter


def test_lower_storage_precision_changes_the_loss_slightly(
    settings: Settings, build: Build, projected_dtypes: list
):
    args = settings(max_train_steps=8, eval_steps="2", num_sample_captions=0)
    train(args)
    projected_dtypes.clear()
    for storage, bound in (("bfloat16", 2e-4), ("int8", 5e-4)):
        stored = on_features(args, build(storage, storage=storage))
        train(stored)
        difference = max(abs(a - b) / b for a, b in zip(losses(stored), losses(args), strict=True))
        assert 0 < difference < bound
        assert {tensor.dtype for tensor in adapter(stored.output_dir).values()} == {torch.float32}
    # The model converts them for the fp32 adapters once, not in each layer.
    assert {given for given, _ in projected_dtypes} == {torch.bfloat16}


def test_features_of_another_layer(settings: Settings, build: Build):
    args = settings(vision_feature_layer=1, max_train_steps=2)
    train(args)
    stored = replace(on_features(args, build(vision_feature_layer=1)), vision_feature_layer=None)
    train(stored)
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)
    config = json.loads((Path(stored.output_dir) / "last" / "config.json").read_text())
    assert config["vision_feature_layer"] == 1
    # The same run, which names the layer of the features.
    again = replace(stored, vision_feature_layer=1, resume_from_checkpoint="latest")
    assert train(again).step == 2
    with pytest.raises(ValueError, match="vision_feature_layer 1, not 0"):
        train(replace(stored, vision_feature_layer=0, output_dir=args.output_dir + " refused"))


# --- Without pictures and without the encoder


def test_a_captioner_trained_without_pictures_and_encoder_is_complete(
    settings: Settings, build: Build, photos: Path, backbones: dict[str, Path], tmp_path: Path
):
    pictures = settings("on pictures", max_train_steps=1, eval_split="none")
    train(pictures)
    features = build()
    for picture in photos.rglob("*.png"):
        picture.unlink()
    away = backbones["vision"].rename(backbones["vision"].with_name("put away"))
    args = settings(**SCORED, features=features, vision_model=None)
    train(args)
    assert len(samples(args)[16]) == 3
    trained = Path(args.output_dir) / "last"

    record = read_training_record(trained)
    assert record is not None
    assert record.features == "float32"
    card = (trained / "README.md").read_text()
    assert "float32" in card
    assert str(tmp_path) not in card + (trained / "training.json").read_text()
    run = json.loads((trained.parent / "run.json").read_text())
    assert run["settings"]["features"] == features

    loaded = ITuningForCaptioning.from_pretrained(trained, load_vision_model=False)
    expected = loaded.generate(visual_features=FeatureStore(features).read("val/0.png")[None])
    with pytest.raises(OSError, match="encoder"):
        ITuningForCaptioning.from_pretrained(trained)
    away.rename(backbones["vision"])
    whole = ITuningForCaptioning.from_pretrained(trained)
    processor = ITuningProcessor.from_pretrained(trained)
    assert torch.equal(whole.generate(**processor(images=Image.new("RGB", (37, 41), "red"))), expected)
    on_pictures = contents(Path(pictures.output_dir) / "last")
    for name in ("processor_config.json", "generation_config.json", "tokenizer.json"):
        assert (trained / name).read_bytes() == on_pictures[name]


def test_a_dry_run_shows_the_features(settings: Settings, build: Build, capsys: pytest.CaptureFixture):
    features = build(storage="bfloat16")
    train(settings(features=features, vision_model=None, dry_run=True))
    printed = capsys.readouterr().out
    assert "Batch      visual_features (4, 10, 15)  bfloat16\n" in printed
    assert f"Features   bfloat16, 10 x 15 for each image, in {features}; neither images nor" in printed


# --- Several processes, resumption


@pytest.mark.stress
def test_two_processes_give_the_results_of_one(settings: Settings, build: Build, tmp_path: Path):
    args = settings(**SCORED, features=build(), vision_model=None)
    two = replace(args, output_dir=args.output_dir + " two", per_device_train_batch_size=2)
    train(args)
    run_on_two(command(two), tmp_path)
    assert losses(two) == pytest.approx(losses(args), rel=1e-3)
    assert samples(two) == samples(args)


def test_a_run_resumes_with_workers_and_features_that_have_moved(settings: Settings, build: Build):
    common = {"vision_model": None, "adapter_dropout": 0.1, "dataloader_num_workers": 2, "max_train_steps": 9}
    common |= {"features": build(storage="bfloat16"), "checkpointing_steps": "2", "eval_steps": "3"}
    common |= {"num_sample_captions": 0}
    args = settings(**common)
    train(args)
    cut = replace(args, output_dir=args.output_dir + " cut")
    train_until(cut, 5)
    moved = shutil.move(common["features"], common["features"] + " moved")
    train(replace(cut, features=moved, resume_from_checkpoint="latest"))
    assert differences(cut.output_dir, args.output_dir) == []


def test_a_checkpoint_belongs_to_its_own_images(settings: Settings, build: Build, photos: Path):
    features = build()
    args = settings(max_train_steps=4, checkpointing_steps="2")
    train(args)
    resumed = replace(args, features=features, vision_model=None, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"image_features None, now 'float32 \w+'"):
        train(resumed)
    stored = replace(resumed, output_dir=args.output_dir + " stored")
    train(stored)
    with pytest.raises(ValueError, match=r"image_features 'float32 \w+', now None"):
        train(replace(args, output_dir=stored.output_dir, resume_from_checkpoint="latest"))
    with pytest.raises(ValueError, match=r"image_features 'float32 \w+', now 'bfloat16 \w+'"):
        train(replace(stored, features=build("half", storage="bfloat16")))

    Image.new("RGB", (40, 41), "yellow").save(photos / "train" / "3.png")
    with pytest.raises(ValueError, match="1 of 11 compared images differ from"):
        train(stored)
    with pytest.raises(ValueError, match=r"image_features 'float32 \w+', now 'float32 \w+'"):
        train(replace(stored, features=build("other pictures")))


# --- Refusals


def test_features_of_another_encoder_or_of_other_images_are_refused(
    settings: Settings, build: Build, photos: Path, backbones: dict[str, Path], tmp_path: Path
):
    other = shutil.copytree(backbones["vision"], tmp_path / "other")
    model = CLIPVisionModel.from_pretrained(other)
    model.pre_layrnorm.weight.data[3] += 1e-3
    model.save_pretrained(other)
    args = settings(features=build(vision_model=other), max_train_steps=1)
    with pytest.raises(ValueError, match=r"vision_model_fingerprint"):
        train(args)
    args = replace(args, vision_model=str(other))
    Image.new("RGB", (40, 41)).save(photos / "val" / "9.png")
    with (photos / "val" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "9.png", "captions": ["a black dog"]}')
    with pytest.raises(ValueError, match=r"no features of 1 of the 4 images .*val/9\.png"):
        train(args)
    with pytest.raises(ValueError, match=r"is not a feature store"):
        train(replace(args, features=str(tmp_path)))
    train(replace(args, eval_split="none"))
    captioner = ITuningForCaptioning.from_pretrained(Path(args.output_dir) / "last")
    assert captioner.config.vision_model_name_or_path == str(other)
