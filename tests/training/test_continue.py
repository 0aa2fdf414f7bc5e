"""`--init_from`: a saved captioner is trained further."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Settings, adapter, command, differences, losses
from small_models import rewrite, store_features, train_until

from ituning_hf import load_captioner
from ituning_hf.cli import main
from ituning_hf.hub.records import read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import load_data
from ituning_hf.training.run import train
from ituning_hf.training.setup import with_backbones

ADAPTER_SETTINGS = ("adapter_hidden_size", "adapter_num_heads", "adapter_layers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test puts its run, for the others."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def first(settings: Settings, trained: Path) -> str:
    """A captioner that was trained for a few steps."""
    options = {"adapter_scale": 0.5, "adapter_dropout": 0.2, "vision_feature_norm": False}
    args = settings("first", max_train_steps=4, **options)
    if trained.exists():
        shutil.copytree(trained, args.output_dir)
    else:
        assert main(command(args)) == 0
        shutil.copytree(args.output_dir, trained)
    return f"{args.output_dir}/last"


@pytest.fixture
def further(settings: Settings, first: str):
    """Return a function that makes the settings of a run that continues from it."""

    def make(name: str = "further", /, **changes) -> TrainArguments:
        unset = dict.fromkeys(("vision_model", "text_model", *ADAPTER_SETTINGS))
        return replace(settings(name), **unset | {"init_from": first} | changes)

    return make


def test_a_run_starts_with_the_captioner_and_its_options(further: Settings, first: str):
    args = further(learning_rate=1e-9, max_train_steps=1)
    train(args)
    assert losses(args)[0] == pytest.approx(losses(replace(args, output_dir=str(Path(first).parent)))[-1])
    for name, tensor in adapter(args.output_dir).items():
        torch.testing.assert_close(tensor, adapter(Path(first).parent)[name], rtol=0, atol=1e-7)
    before, after = (load_captioner(folder)[0].config for folder in (first, f"{args.output_dir}/last"))
    assert after.to_dict() | {"_name_or_path": first} == before.to_dict()
    assert before.vision_feature_norm is False
    assert read_training_record(f"{args.output_dir}/last").settings["init_from"] == "first/last"


def test_a_run_from_a_captioner_resumes_to_the_same_bytes(further: Settings):
    whole, cut = (further(name, max_train_steps=4, checkpointing_steps="1") for name in ("whole", "cut"))
    train(whole)
    train_until(cut, 2)
    train(replace(cut, resume_from_checkpoint="latest"))
    assert differences(cut.output_dir, whole.output_dir) == []


def test_the_dropout_may_change_and_the_same_options_may_be_given(further: Settings, settings: Settings):
    same = {name: getattr(settings(), name) for name in ADAPTER_SETTINGS}
    args = further(adapter_dropout=0.0, adapter_scale=0.5, max_train_steps=1, **same)
    train(args)
    assert load_captioner(f"{args.output_dir}/last")[0].config.adapter_dropout == 0.0


def test_generation_settings_are_saved_and_kept(further: Settings):
    previous: dict[str, str] = {}
    for name, given, expected in (("new", 2, 2), ("kept", None, 2), ("removed", 0, 0)):
        args = further(name, max_train_steps=1, no_repeat_ngram_size=given, **previous)
        train(args)
        previous = {"init_from": args.output_dir}
        model, _ = load_captioner(f"{args.output_dir}/last")
        assert (model.generation_config.no_repeat_ngram_size or 0) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_hidden_size": 14}, r"--adapter_hidden_size is 14, but .*last was saved with \d+: omit"),
        ({"adapter_layers": [0]}, r"--adapter_layers is \[0\], but .* saved with \["),
        ({"adapter_scale": 1.0}, r"--adapter_scale is 1\.0, but .* saved with 0\.5"),
        ({"vision_feature_layer": 0}, "--vision_feature_layer is 0, but .* saved with -1"),
        ({"vision_feature_norm": True}, "--vision_feature_norm is True, but .* saved with False"),
        ({"init_from": "no/such"}, "There is no captioner at 'no/such'"),
    ],
)
def test_options_of_another_captioner_are_refused(further: Settings, changes: dict, message: str):
    args = further(**changes)
    with pytest.raises((ValueError, OSError), match=message):
        train(args)
    assert not (Path(args.output_dir) / "checkpoints").exists()


def test_backbones_may_have_moved_and_may_not_be_others(
    further: Settings, backbones: dict[str, Path], tmp_path: Path
):
    moved = shutil.copytree(backbones["vision"], tmp_path / "moved")
    args = further(vision_model=str(moved), max_train_steps=1)
    train(args)
    assert load_captioner(f"{args.output_dir}/last")[0].config.vision_model_name_or_path == str(moved)
    other = shutil.copytree(backbones["text"], tmp_path / "other")
    rewrite(other / "model.safetensors", lambda tensors: tensors["transformer.ln_f.weight"].fill_(1.25))
    with pytest.raises(ValueError, match="is not the one"):
        train(further("refused", text_model=str(other)))


def test_stored_features_continue_a_captioner(further: Settings, backbones: dict[str, Path], tmp_path: Path):
    on_pixels = further(max_train_steps=2)
    data = load_data(on_pixels)
    options = {"vision_model": str(backbones["vision"]), "storage": "float32"}
    store_features(tmp_path / "features", [data.train, data.evaluation], **options)
    on_features = further("stored", max_train_steps=2, features=str(tmp_path / "features"))
    train(on_pixels)
    train(on_features)
    assert losses(on_features) == pytest.approx(losses(on_pixels), rel=1e-4)


def test_a_runs_folder_names_its_best_captioner_or_else_its_last(further: Settings, first: str):
    run = Path(first).parent
    args = further(init_from=str(run))
    assert with_backbones(args).init_from == str(run / "best")
    shutil.rmtree(run / "best")
    assert with_backbones(args).init_from == str(run / "last")


def test_no_backbones_are_filled_in(further: Settings):
    args = with_backbones(further(size="medium"))
    assert (args.vision_model, args.text_model) == (None, "gpt2-medium")
