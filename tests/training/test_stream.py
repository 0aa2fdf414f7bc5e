"""Training on tar shards: the length of a run, resumption, several processes, and unreadable images."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from processes import Command, run_on_two
from runs import Settings, adapter, command, differences, losses, wait_for_log
from small_models import read_log, store_features, train_until
from small_shards import png, tar_bytes, write_shards

from ituning_hf import cli
from ituning_hf.hub.records import read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import load_data
from ituning_hf.training.errors import NonFiniteLossError, TrainingError
from ituning_hf.training.run import train

SIZES = (5, 3, 0, 9, 2, 4)
STEPS = {"max_train_steps": 9, "eval_steps": "4", "checkpointing_steps": "2"}


@pytest.fixture
def on_shards(settings: Settings, tmp_path: Path) -> Callable[..., TrainArguments]:
    """Return a function that makes the settings of a short run on uneven shards."""
    write_shards(tmp_path / "shards", SIZES)

    def make(name: str = "run", /, **changes: Any) -> TrainArguments:
        dataset = f"{tmp_path}/shards/{{000..005}}.tar"
        return settings(name, **{"dataset": dataset, "val_share": 0.2, **STEPS} | changes)

    return make


# --- The length of a run


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "--max_train_steps N and --eval_steps N and --checkpointing_steps N"),
        ({"max_train_steps": 5, "eval_steps": "5"}, "--checkpointing_steps N"),
        ({"max_train_steps": 5, "checkpointing_steps": "5"}, "--eval_steps N"),
        ({"max_train_steps": 5, "eval_split": "none"}, "--checkpointing_steps N"),
    ],
)
def test_steps_must_be_given_without_a_known_length(on_shards: Settings, given: dict, missing: str):
    unset = {"max_train_steps": None, "eval_steps": "epoch", "checkpointing_steps": "epoch"}
    advice = rf"an epoch has no length: give {re.escape(missing)}, .*; or --expected_train_images N"
    with pytest.raises(ValueError, match=advice):
        train(on_shards(**unset | given))


def test_a_stated_number_of_images_gives_epochs(on_shards: Settings, capsys: pytest.CaptureFixture):
    unset = {"max_train_steps": None, "eval_steps": "epoch", "checkpointing_steps": "epoch"}
    args = on_shards(**unset, expected_train_images=19, num_train_epochs=2)
    assert train(args).step == 10
    assert "Images     80% of 6 tar shards to train on, 4 for validation" in capsys.readouterr().out
    assert [line["step"] for line in read_log(args.output_dir) if "validation_loss" in line] == [0, 5, 10]
    record = read_training_record(f"{args.output_dir}/last")
    assert record is not None
    assert (record.num_train_images, record.epoch) == (19, 2)


def test_a_run_of_unknown_length_is_described_and_saved(on_shards: Settings, capsys: pytest.CaptureFixture):
    args = on_shards(max_train_steps=4)
    assert cli.main(command(replace(args, dry_run=True))) == 0
    assert "Plan       4 steps\n" in capsys.readouterr().out
    train(args)
    assert "step 4, 16 images, the best so far" in capsys.readouterr().out
    record = read_training_record(f"{args.output_dir}/last")
    assert record is not None
    assert (record.num_train_images, record.epoch, record.num_eval_images) == (None, None, 4)
    assert "optimizer steps | 4 |" in (Path(args.output_dir) / "last" / "README.md").read_text()
    assert cli.main(["info", f"{args.output_dir}/last"]) == 0
    assert "unknown images" in capsys.readouterr().out


def test_settings_of_other_formats_are_refused(
    on_shards: Settings, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(ValueError, match="--image_root cannot be used with tar shards"):
        train(on_shards(image_root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"no images of split 'test'.*To train without validation"):
        train(on_shards(eval_split="test"))
    with pytest.raises(ValueError, match="--objective cider needs the captions of all images at the start"):
        train(on_shards(objective="cider", init_from="run"))
    args = on_shards(eval_split="none", max_train_steps=1, dataset=f"{tmp_path}/shards/000.tar")
    train(args)
    assert "Images     80% of 1 tar shard to train on, 0 for validation" in capsys.readouterr().out


def test_validation_reads_the_first_images(on_shards: Settings):
    everything = load_data(on_shards()).evaluation
    assert len(load_data(on_shards(max_eval_images=3)).evaluation) == 3
    assert load_data(on_shards(max_eval_images=3)).evaluation[2] == everything[2]
    assert load_data(on_shards(expected_eval_images=4)).evaluation[3] == everything[3]
    with pytest.raises(ValueError, match=r"--expected_eval_images is 5, but .* has 4 images"):
        load_data(on_shards(expected_eval_images=5))


# --- Resumption


@pytest.mark.parametrize("remote", [False, True])
def test_a_resumed_run_writes_the_same_bytes(on_shards: Settings, tmp_path: Path, remote: bool):
    changes = {"adapter_dropout": 0.3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    if remote:
        for path in (tmp_path / "shards").iterdir():
            fsspec.filesystem("memory").pipe(f"/train/{path.name}", path.read_bytes())
        changes["dataset"] = "memory://train/{000..005}.tar"
    whole, cut = (on_shards(name, **changes) for name in ("whole", "cut"))
    train(whole)
    train_until(cut, 5)
    train(replace(cut, resume_from_checkpoint="latest"))
    assert differences(cut.output_dir, whole.output_dir) == []


def test_a_run_killed_with_its_workers_resumes(on_shards: Settings, tmp_path: Path):
    changes = {"dataloader_num_workers": 2, "augmentation": ["crop"], "resume_from_checkpoint": "latest"}
    whole, cut = (on_shards(name, **changes) for name in ("whole", "cut"))
    train(whole)
    run = Command(command(cut), tmp_path / "output")
    wait_for_log(run, cut, 5)
    run.kill()
    train(replace(cut, dataloader_num_workers=1))
    assert differences(cut.output_dir, whole.output_dir) == []


def test_other_shards_are_another_run(on_shards: Settings, tmp_path: Path):
    train(on_shards(max_train_steps=2))
    with (tmp_path / "shards" / "003.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ValueError, match="data_fingerprint"):
        train(on_shards(max_train_steps=2, resume_from_checkpoint="latest"))


# --- Several processes


def assert_same_weights(ours: TrainArguments, theirs: TrainArguments) -> None:
    for name, tensor in adapter(ours.output_dir).items():
        if name.endswith("k_proj.bias"):
            continue  # it has no effect on the softmax: AdamW makes steps of rounding errors
        torch.testing.assert_close(adapter(theirs.output_dir)[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def positions(args: TrainArguments, step: int) -> list[list[int]]:
    folder = Path(args.output_dir) / "checkpoints" / f"step_{step:08}"
    return json.loads((folder / "trainer_state.json").read_text())["state"]["positions"]


def test_two_processes_give_the_results_of_one_and_continue_its_stream(on_shards: Settings, tmp_path: Path):
    one = on_shards("one", per_device_train_batch_size=4)
    two = replace(one, per_device_train_batch_size=2, output_dir=str(tmp_path / "two"))
    cut = replace(one, output_dir=str(tmp_path / "cut"))
    continued = replace(two, output_dir=cut.output_dir, resume_from_checkpoint="latest")
    train(one)
    train_until(cut, 5)
    for args in (two, continued):
        run_on_two(command(args), tmp_path)
        assert_same_weights(one, args)
        assert positions(args, 8) == positions(one, 8)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert len(positions(one, 8)) == 4


# --- Images


def test_a_nonfinite_loss_names_the_images_of_the_stream(
    on_shards: Settings, monkeypatch: pytest.MonkeyPatch
):
    args = on_shards("finite", max_train_steps=3)
    train(args)
    from ituning_hf.training import loop

    step = loop.CaptionTrainer._count

    def count(self: Any, batches: list) -> int:
        if self.state.step == 2:
            batches[0]["pixel_values"].fill_(torch.nan)
        return step(self, batches)

    monkeypatch.setattr(loop.CaptionTrainer, "_count", count)
    data = load_data(args)
    sampler = loop.StreamSampler(data.train, 4, 1, 1, 0)
    keys = iter(sampler)
    expected = [key.image.name for key in [next(keys) for _ in range(3)][2]]
    with pytest.raises(
        NonFiniteLossError, match=re.escape(f"at step 3, computed from {', '.join(expected)}")
    ):
        train(replace(args, output_dir=f"{args.output_dir} nan"))


def test_unreadable_images_are_skipped_up_to_a_share_of_those_so_far(
    on_shards: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    members = {f"{i}.{kind}": content for i in range(9) for kind, content in (("png", png()), ("txt", b"a"))}
    (tmp_path / "shards" / "001.tar").write_bytes(tar_bytes(members | {"3.png": b"not an image"}))
    args = on_shards(eval_split="none", max_train_steps=12)
    train(args)
    assert "skipped: cannot read 001/3: it is not an image" in caplog.text
    monkeypatch.setattr("ituning_hf.training.loop.LEAST_SEEN", 4)
    with pytest.raises(TrainingError, match=r"\d of \d+ images could not be read, .* 0\.01 allows 0"):
        train(replace(args, output_dir=f"{args.output_dir} strict", max_unreadable_share=0.01))


def test_stored_features_of_shards_replace_the_stream(on_shards: Settings, tmp_path: Path):
    args = on_shards(max_train_steps=2, features=str(tmp_path / "features"))
    data = load_data(args)
    assert len(data.train) + len(data.evaluation) == sum(SIZES)
    store_features(tmp_path / "features", [data.train, data.evaluation], vision_model=args.vision_model)
    train(replace(args, vision_model=None))
