"""What trackers receive, read back from their own files, and that a resumed run continues in them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import read_log, train_until

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.run import train

Settings = Callable[..., TrainArguments]


def read_events(args: TrainArguments) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, str]]]:
    """Return TensorBoard's scalars and texts, each by tag and step, as its own reader returns them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(args.output_dir) / "tensorboard" / "ituning"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.startswith("samples/")
    }
    for values in scalars.values():  # of texts the reader does not hide what came before a resumption
        assert len(dict(values)) == len(values)
    return {tag: dict(v) for tag, v in scalars.items()}, {tag: dict(v) for tag, v in texts.items()}


def test_nothing_is_reported_unless_asked_for(settings: Settings):
    args = settings(max_train_steps=1)
    train(args)
    assert not (Path(args.output_dir) / "tensorboard").exists()
    assert "id" not in json.loads((Path(args.output_dir) / "run.json").read_text())


def test_tensorboard_gets_the_logs_values_and_the_sample_captions(settings: Settings):
    args = settings(max_train_steps=4, eval_steps="2", num_sample_captions=2, report_to=["tensorboard"])
    train(args)
    scalars, texts = read_events(args)
    records = read_log(args.output_dir)
    for tag, name in {
        "train/loss": "loss",
        "train/learning_rate": "learning_rate",
        "validation/loss": "validation_loss",
    }.items():
        assert scalars[tag] == pytest.approx({r["step"]: r[name] for r in records if name in r}), tag
    assert all(speed > 0 for speed in scalars["train/images_per_second"].values())
    samples = {r["step"]: r["samples"] for r in records if "samples" in r}
    assert list(samples) == [0, 2, 4]
    assert texts == {
        f"samples/{name}/text_summary": {step: captions[name] for step, captions in samples.items()}
        for name in ("val/0.png", "val/1.png")
    }


def test_tensorboard_gets_the_settings_once(settings: Settings):
    common = {"report_to": ["tensorboard"], "checkpointing_steps": "1", "adapter_layers": [0, -1]}
    args = settings(max_train_steps=2, **common)
    train_until(args, 1)
    train(settings(max_train_steps=2, **common, resume_from_checkpoint="latest"))
    (written,) = (Path(args.output_dir) / "tensorboard").rglob("hparams.yml")
    lines = written.read_text().splitlines()
    assert "learning_rate: 0.01" in lines
    assert "adapter_layers: '[0, -1]'" in lines


def test_a_resumed_run_continues_in_the_same_events(settings: Settings, tmp_path: Path):
    common = {"max_train_steps": 5, "eval_steps": "1", "checkpointing_steps": "2"}
    whole = settings(**common, report_to=["tensorboard"], output_dir=str(tmp_path / "whole"))
    train(whole)
    cut = settings(**common, report_to=["tensorboard"], output_dir=str(tmp_path / "cut"))
    train_until(cut, 4)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_00000004")  # its events are ahead of step 2
    id_before = json.loads((tmp_path / "cut" / "run.json").read_text())["id"]
    train(
        settings(
            **common, report_to=["tensorboard"], output_dir=cut.output_dir, resume_from_checkpoint="latest"
        )
    )
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["id"] == id_before
    (expected, expected_texts), (found, texts) = read_events(whole), read_events(cut)
    assert list(found["train/images_per_second"]) == [1, 2, 3, 4, 5]
    for speeds in (expected, found):
        del speeds["train/images_per_second"]
    assert found == expected
    assert texts == expected_texts


def test_trackers_may_change_when_a_run_is_resumed(settings: Settings):
    train_until(settings(max_train_steps=3, checkpointing_steps="1"), 2)
    args = settings(
        max_train_steps=3,
        checkpointing_steps="1",
        report_to=["tensorboard"],
        max_checkpoints=1,
        resume_from_checkpoint="latest",
    )
    train(args)
    assert list(read_events(args)[0]["train/loss"]) == [3]
    kept = (Path(args.output_dir) / "checkpoints").iterdir()
    assert [path.name for path in kept] == ["step_00000003"]


def test_a_tracker_that_is_not_installed_is_refused_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    args = settings(report_to=["tensorboard", "wandb"])
    with pytest.raises(ValueError, match=r"--report_to wandb: it is not installed\. Run pip install wandb"):
        train(args)
    assert not Path(args.output_dir).exists()


def test_trackio_continues_the_same_run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    common = {"max_train_steps": 3, "checkpointing_steps": "1", "report_to": ["trackio"]}
    args = settings(**common)
    train_until(args, 2)
    train(settings(**common, resume_from_checkpoint="latest"))
    (run,) = trackio.Api().runs("ituning")
    run_id = json.loads((Path(args.output_dir) / "run.json").read_text())["id"]
    assert (run.name, run.config["learning_rate"]) == (f"run-{run_id}", 0.01)


def test_wandb_continues_the_same_run(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    common = {"max_train_steps": 3, "checkpointing_steps": "1", "report_to": ["wandb"]}
    args = settings(**common)
    train_until(args, 2)
    train(settings(**common, resume_from_checkpoint="latest"))
    run_id = json.loads((Path(args.output_dir) / "run.json").read_text())["id"]
    folders = (Path(args.output_dir) / "wandb").glob("offline-run-*")
    assert {folder.name.split("-", 3)[3] for folder in folders} == {f"run-{run_id}"}
