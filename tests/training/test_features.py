"""Training on stored features: the same run as on pictures, without these and without the vision encoder."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runner import Run, contents, torchrun
from safetensors.torch import load_file
from small_models import edit_json, read_log
from transformers import CLIPVisionModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.features.build import build_features
from ituning_hf.features.store import FeatureStore
from ituning_hf.hub.training_record import read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.training.setup import load_data

Settings = Callable[..., TrainArguments]
Build = Callable[..., str]

SCORED = {"eval_caption_images": 3, "num_sample_captions": 3, "eval_steps": "8", "max_train_steps": 16}


@pytest.fixture
def backbones(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Backbones of which a test may take the encoder away."""
    return backbones | {"vision": shutil.copytree(backbones["vision"], tmp_path / "encoder")}


@pytest.fixture
def build(settings: Settings, tmp_path: Path) -> Build:
    """Return a function that stores features of the pictures, in float32, and returns their folder."""

    def make(name: str = "features", **options: Any) -> str:
        args = settings()
        data = load_data(args)
        defaults = {"vision_model": args.vision_model, "storage": "float32", "num_workers": 0}
        build_features([*data.train, *data.evaluation], tmp_path / name, **defaults | options)
        return str(tmp_path / name)

    return make


def losses(args: TrainArguments) -> list[float]:
    """Every step's loss and every validation's, in the order of the log."""
    return [r.get("loss", r.get("validation_loss")) for r in read_log(args.output_dir)]


def samples(args: TrainArguments) -> list[dict[str, str]]:
    return [r["samples"] for r in read_log(args.output_dir) if "samples" in r]


def on_features(args: TrainArguments, features: str) -> TrainArguments:
    """The same run elsewhere, its images known by features alone."""
    place = args.output_dir + " on features"
    return replace(args, vision_model=None, features=features, output_dir=place)


# --- The same as from pictures


def test_losses_and_captions_are_those_of_pictures(
    settings: Settings, build: Build, monkeypatch: pytest.MonkeyPatch
):
    """Steps of two batches, more captions than are taken of an image, an epoch's padding, scores."""
    args = settings(**SCORED, gradient_accumulation_steps=2, captions_per_image=1)
    train(args)
    stored = on_features(args, build())
    train(stored)
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)
    assert len(losses(args)) == 16 + 3
    assert samples(stored) == samples(args)
    assert samples(args)[0] != samples(args)[-1]
    monkeypatch.setattr(FeatureStore, "read", lambda store, name: store.blank())
    train(blank := replace(stored, output_dir=args.output_dir + " blank"))
    assert losses(blank) != pytest.approx(losses(args), rel=1e-3)


@pytest.mark.parametrize(("storage", "bound"), [("bfloat16", 2e-4), ("int8", 5e-4)])
def test_smaller_numbers_change_the_loss_a_little(
    settings: Settings, build: Build, storage: str, bound: float
):
    args = settings(max_train_steps=8, eval_steps="2")
    train(args)
    stored = on_features(args, build(storage=storage))
    train(stored)
    difference = max(abs(a - b) / b for a, b in zip(losses(stored), losses(args), strict=True))
    print(f"largest relative difference of a loss with {storage}: {difference:.1e}")  # noqa: T201
    assert 0 < difference < bound


def test_unreadable_pictures_are_skipped_as_from_pictures(
    settings: Settings, build: Build, caplog: pytest.LogCaptureFixture, photos: Path
):
    for name in ("train/4.png", "val/1.png"):
        (photos / name).write_bytes(b"no picture")
    args = settings(**SCORED, max_unreadable_share=0.4)
    train(args)
    skipped = [r.getMessage() for r in caplog.records if "skipped: " in r.getMessage()]
    assert len(skipped) == 2
    stored = on_features(args, build())
    caplog.clear()
    train(stored)
    assert [r.getMessage() for r in caplog.records if "skipped: " in r.getMessage()] == skipped
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)
    assert samples(stored) == samples(args)
    with pytest.raises(RuntimeError, match=r"1 of 3 images could not be read, and --max_unreadable_share 0"):
        train(replace(stored, max_unreadable_share=0.0, output_dir=args.output_dir + " refused"))


def test_another_layers_features(settings: Settings, build: Build):
    args = settings(vision_feature_layer=1, max_train_steps=2)
    train(args)
    stored = on_features(args, build(vision_feature_layer=1))
    train(stored := replace(stored, vision_feature_layer=None))  # the features tell
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)
    config = json.loads((Path(stored.output_dir) / "last" / "config.json").read_text())
    assert config["vision_feature_layer"] == 1


# --- Without pictures and without the encoder


@pytest.fixture
def trained_without(settings: Settings, build: Build, photos: Path, backbones: dict[str, Path]) -> Path:
    """A captioner that was trained when neither was there any more."""
    features = build()
    for picture in photos.rglob("*.png"):
        picture.unlink()
    backbones["vision"].rename(backbones["vision"].with_name("put away"))
    args = settings(**SCORED, features=features, vision_model=None)
    train(args)
    assert len(samples(args)[-1]) == 3
    return Path(args.output_dir) / "last"


def test_its_captioner_is_complete(
    trained_without: Path, backbones: dict[str, Path], settings: Settings, tmp_path: Path
):
    loaded = ITuningForCaptioning.from_pretrained(trained_without, load_vision_model=False)
    store = FeatureStore(tmp_path / "features")
    expected = loaded.generate(visual_features=store.read("val/0.png")[None])
    with pytest.raises(OSError, match=r"vision model was not found at vision_model_name_or_path='.*encoder'"):
        ITuningForCaptioning.from_pretrained(trained_without)

    backbones["vision"].with_name("put away").rename(backbones["vision"])
    whole = ITuningForCaptioning.from_pretrained(trained_without)
    processor = ITuningProcessor.from_pretrained(trained_without)
    picture = Image.new("RGB", (37, 41), "red")
    assert torch.equal(whole.generate(**processor(images=picture)), expected)

    Image.new("RGB", (37, 41), "red").save(tmp_path / "red.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "red.png", "captions": ["a red dog"]}')
    args = settings(dataset=str(tmp_path), max_train_steps=1, eval_split="none")
    args = replace(args, output_dir=args.output_dir + " on pictures")
    train(args)
    of_pictures = Path(args.output_dir) / "last"
    for name in ("processor_config.json", "generation_config.json", "tokenizer.json"):
        assert (trained_without / name).read_bytes() == (of_pictures / name).read_bytes()
    ours, theirs = (json.loads((at / "config.json").read_text()) for at in (trained_without, of_pictures))
    for config in (ours, theirs):  # of other weights
        assert (len(config.pop("adapter_fingerprint")), len(config.pop("config_fingerprint"))) == (32, 32)
    assert ours == theirs


def test_another_encoder_in_its_place_is_refused_at_loading(
    trained_without: Path, backbones: dict[str, Path]
):
    other = CLIPVisionModel.from_pretrained(backbones["vision"].with_name("put away"))
    other.pre_layrnorm.weight.data[3] += 1e-6
    other.save_pretrained(backbones["vision"])
    with pytest.raises(ValueError, match=r"vision model found at .* is not the one this adapter was"):
        ITuningForCaptioning.from_pretrained(trained_without)


def test_the_record_and_the_card_say_so_and_name_no_place(trained_without: Path, tmp_path: Path):
    record = read_training_record(trained_without)
    assert record is not None
    assert record.features == "float32"
    texts = [(trained_without / name).read_text() for name in ("training.json", "README.md")]
    assert not any(str(tmp_path) in text for text in texts)
    assert "| image features" in (card := texts[1])
    assert "computed once and stored in float32" in card
    run = json.loads((trained_without.parent / "run.json").read_text())
    assert run["settings"]["features"] == str(tmp_path / "features")


def test_a_dry_run_shows_the_features(settings: Settings, build: Build, capsys: pytest.CaptureFixture):
    features = build(storage="bfloat16")
    train(settings(features=features, vision_model=None, dry_run=True))
    of_features = capsys.readouterr().out
    assert "Batch      visual_features  (4, 10, 15)  bfloat16\n" in of_features
    assert f"Features   bfloat16, 10 x 15 for each image, in {features}; neither images nor" in of_features
    train(settings(dry_run=True))
    (trainable,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Trainable"))
    assert trainable in of_features


def test_the_built_in_scenes_take_the_shipped_language_model(settings: Settings, tmp_path: Path):
    from ituning_hf.training.setup import SCENE_BACKBONES

    scenes = {"dataset": "scenes", "num_scenes": 12, "text_model": None, "adapter_num_heads": None}
    scenes |= {"adapter_hidden_size": None, "max_train_steps": 2}
    args = settings(**scenes, vision_model=None)
    data = load_data(args)
    options = {"vision_model": SCENE_BACKBONES / "vision", "storage": "float32", "num_workers": 0}
    build_features([*data.train, *data.evaluation], tmp_path / "scenes", **options)
    train(args)
    stored = on_features(args, str(tmp_path / "scenes"))
    train(stored)
    assert losses(stored) == pytest.approx(losses(args), rel=1e-5)


# --- Several processes, kills


def test_two_processes_find_what_one_does(settings: Settings, build: Build):
    args = settings(**SCORED, features=build(), vision_model=None, mixed_precision="no")
    two = replace(args, output_dir=args.output_dir + " two", per_device_train_batch_size=2)
    train(args)
    _, errors = (process := torchrun(two)).communicate(timeout=300)
    assert process.returncode == 0, errors
    assert read_log(two.output_dir)[0].keys() == read_log(args.output_dir)[0].keys()
    assert losses(two) == pytest.approx(losses(args), rel=1e-3)
    assert samples(two) == samples(args)
    state = json.loads((Path(two.output_dir) / "checkpoints/step_00000016/trainer_state.json").read_text())
    assert state["num_processes"] == 2


def test_a_killed_run_goes_on_to_the_same_bytes(settings: Settings, build: Build):
    """With workers that read the features; the store is found in another place afterwards."""
    args = settings(
        features=build(storage="bfloat16"),
        vision_model=None,
        adapter_dropout=0.1,
        checkpointing_steps="2",
        dataloader_num_workers=2,
        max_train_steps=9,
        eval_steps="3",
        resume_from_checkpoint="latest",
    )
    assert Run(args).end() == 0
    cut = replace(args, output_dir=args.output_dir + " cut")
    killed = Run(cut)
    killed.wait_until(lambda: (Path(cut.output_dir) / "checkpoints" / "step_00000004").exists())
    killed.signal(signal.SIGKILL, group=True)
    assert killed.end() == -signal.SIGKILL
    moved = shutil.move(str(args.features), str(args.features) + " moved")
    assert Run(replace(cut, features=moved)).end() == 0
    for name in ("best", "last"):
        assert contents(Path(cut.output_dir) / name) == contents(Path(args.output_dir) / name)
    assert (Path(cut.output_dir) / "log.jsonl").read_text() == (
        Path(args.output_dir) / "log.jsonl"
    ).read_text()


def test_a_checkpoint_is_of_its_own_images(settings: Settings, build: Build, photos: Path):
    features = build()
    args = settings(max_train_steps=4, checkpointing_steps="2")
    train(args)
    on_features = replace(args, features=features, vision_model=None, resume_from_checkpoint="latest")
    with pytest.raises(
        ValueError, match=r"trained on the images themselves, and this run is on --features in"
    ):
        train(on_features)
    stored = replace(on_features, output_dir=args.output_dir + " stored")
    train(stored)
    with pytest.raises(
        ValueError, match=r"trained on --features in float32 of fingerprint \w+, and this run"
    ):
        train(replace(args, output_dir=stored.output_dir, resume_from_checkpoint="latest"))
    with pytest.raises(
        ValueError, match=r"on --features in float32 .* this run is on --features in bfloat16"
    ):
        train(replace(stored, features=build("half", storage="bfloat16")))

    Image.new("RGB", (40, 41), "yellow").save(photos / "train" / "3.png")
    with pytest.raises(ValueError, match=r"features of other pictures than 1 of the 11 images have now"):
        train(stored)
    with pytest.raises(
        ValueError, match=r"in float32 of fingerprint \w+, and this run is on --features in f"
    ):
        train(replace(stored, features=build("other pictures")))


def test_naming_the_layer_that_is_taken_anyway_is_the_same_run(settings: Settings, build: Build):
    args = settings(features=build(), vision_model=None, max_train_steps=2)
    train(args)
    again = replace(args, vision_feature_layer=-1, resume_from_checkpoint="latest")
    assert train(again).step == 2


# --- Refusals


def other_encoder(backbones: dict[str, Path], folder: Path) -> Path:
    model = CLIPVisionModel.from_pretrained(backbones["vision"])
    model.pre_layrnorm.weight.data[3] += 1e-3
    model.save_pretrained(shutil.copytree(backbones["vision"], folder))
    return folder


def test_features_of_another_encoder_are_refused(
    settings: Settings, build: Build, backbones: dict[str, Path], tmp_path: Path
):
    other = other_encoder(backbones, tmp_path / "other")
    args = settings(features=build(vision_model=other))
    with pytest.raises(ValueError, match=r"not of this captioner's vision encoder: vision_model_fingerprint"):
        train(args)
    train(replace(args, vision_model=str(other), max_train_steps=1))


def test_an_encoder_that_has_moved_is_recorded_where_it_is_given(
    settings: Settings, build: Build, backbones: dict[str, Path]
):
    features = build()
    moved = backbones["vision"].rename(backbones["vision"].with_name("moved"))
    args = settings(features=features, vision_model=str(moved), max_train_steps=1)
    train(args)
    captioner = ITuningForCaptioning.from_pretrained(Path(args.output_dir) / "last")
    assert captioner.config.vision_model_name_or_path == str(moved)


def test_another_preparation_than_the_features_is_refused(
    settings: Settings, build: Build, backbones: dict[str, Path]
):
    features = build()
    edit_json(backbones["vision"] / "preprocessor_config.json", do_center_crop=False)
    args = settings(features=features, max_train_steps=1)
    with pytest.raises(ValueError, match=r"image_processor\.do_center_crop True, not False"):
        train(args)
    train(replace(args, vision_model=None))


def test_another_layer_than_the_features_is_refused(settings: Settings, build: Build):
    args = settings(features=build(), vision_feature_layer=1)
    with pytest.raises(ValueError, match="vision encoder: vision_feature_layer -1, not 1"):
        train(args)
    train(replace(args, vision_feature_layer=2, max_train_steps=1))  # -1, counted from the bottom


def test_images_without_features_are_refused(settings: Settings, build: Build, photos: Path):
    args = settings(features=build())
    Image.new("RGB", (40, 41)).save(photos / "val" / "9.png")
    with (photos / "val" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "9.png", "captions": ["a black dog"]}')
    with pytest.raises(ValueError, match=r"no features of 1 of the 4 images \('val/9\.png'\): add them by"):
        train(args)
    train(replace(args, eval_split="none", max_train_steps=1))


def test_a_folder_that_is_no_store_is_refused(settings: Settings, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"is no store of features: it has no store\.json"):
        train(settings(features=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augmentation": ["flip"]},
            r"--augmentation is \['flip'\], and --features holds what the vision encoder made of the images",
        ),
        (
            {"vision_model": None, "text_model": None},
            r"--features is given and --text_model is not, and small backbones would .*: give --text_model\.",
        ),
        ({"text_model": None}, "--features is given and --text_model is not"),
        ({"features": " "}, r"--features is ' ', expected something, not an empty text\."),
    ],
)
def test_settings_that_contradict_features_are_refused(settings: Settings, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings(**{"features": "features"} | changes)


# --- Precisions


def test_features_travel_to_the_captioner_in_their_own_precision(
    settings: Settings, build: Build, monkeypatch: pytest.MonkeyPatch
):
    """They become the adapters' fp32 there: once for a step, not once for a layer."""
    given: list[torch.Tensor] = []
    project = ITuningForCaptioning.project_visual

    def watch(self: ITuningForCaptioning, visual_features: torch.Tensor) -> Any:
        given.append(visual_features)
        return project(self, visual_features)

    monkeypatch.setattr(ITuningForCaptioning, "project_visual", watch)
    args = settings(features=build(storage="bfloat16"), vision_model=None, max_train_steps=2)
    train(args)
    assert {features.dtype for features in given} == {torch.bfloat16}
    weights = load_file(Path(args.output_dir) / "last" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
