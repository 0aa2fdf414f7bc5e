"""Trackers: metrics and captions read back from the trackers' own files, also after a resumption."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Settings, samples
from small_models import read_log, train_until
from tqdm import tqdm

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.reporting import BAR_FORMAT
from ituning_hf.training.run import train


def read_events(args: TrainArguments) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, str]]]:
    """Read TensorBoard's scalars and texts, each by tag and step, with its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(args.output_dir) / "tensorboard" / "ituning"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.startswith("samples/")
    }
    for values in scalars.values():  # the reader hides later scalars of an interrupted run, but not texts
        assert len(dict(values)) == len(values)
    return {tag: dict(v) for tag, v in scalars.items()}, {tag: dict(v) for tag, v in texts.items()}


def read_run_id(args: TrainArguments) -> str:
    return json.loads((Path(args.output_dir) / "run.json").read_text())["id"]


def test_a_resumed_run_continues_in_the_same_tensorboard_run(settings: Settings, tmp_path: Path):
    common = {"max_train_steps": 5, "eval_steps": "1", "checkpointing_steps": "2", "num_sample_captions": 2}
    common |= {"report_to": ["tensorboard"], "adapter_layers": [0, -1]}
    whole, cut = (settings(name, **common) for name in ("whole", "cut"))
    train(whole)
    train_until(cut, 4)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_00000004")  # its events are ahead of step 2
    run_id = read_run_id(cut)
    train(replace(cut, resume_from_checkpoint="latest"))
    assert read_run_id(cut) == run_id

    scalars, texts = read_events(whole)
    log = read_log(whole.output_dir)
    for tag, name in {
        "train/loss": "loss",
        "train/learning_rate": "learning_rate",
        "validation/loss": "validation_loss",
    }.items():
        assert scalars[tag] == pytest.approx({r["step"]: r[name] for r in log if name in r}), tag
    shown = samples(whole)
    assert list(shown) == [0, 1, 2, 3, 4, 5]
    assert texts == {
        f"samples/{name}/text_summary": {step: captions[name] for step, captions in shown.items()}
        for name in ("val/0.png", "val/1.png")
    }
    resumed_scalars, resumed_texts = read_events(cut)
    for values in (scalars, resumed_scalars):
        speeds = values.pop("train/images_per_second")
        assert list(speeds) == [1, 2, 3, 4, 5]
        assert min(speeds.values()) > 0
    assert resumed_scalars == scalars
    assert resumed_texts == texts
    (written,) = (Path(cut.output_dir) / "tensorboard").rglob("hparams.yml")  # once
    lines = written.read_text().splitlines()
    assert "learning_rate: 0.01" in lines
    assert "adapter_layers: '[0, -1]'" in lines


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
    args = settings(max_train_steps=3, checkpointing_steps="1", report_to=["trackio"])
    train_until(args, 2)
    train(replace(args, resume_from_checkpoint="latest"))
    (run,) = trackio.Api().runs("ituning")
    assert (run.name, run.config["learning_rate"]) == (f"run-{read_run_id(args)}", 0.01)


def test_wandb_continues_the_same_run(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    args = settings(max_train_steps=3, checkpointing_steps="1", report_to=["wandb"])
    train_until(args, 2)
    train(replace(args, resume_from_checkpoint="latest"))
    folders = (Path(args.output_dir) / "wandb").glob("offline-run-*")
    assert {folder.name.split("-", 3)[3] for folder in folders} == {f"run-{read_run_id(args)}"}


def test_a_progress_bar_fits_in_80_columns():
    postfix = "loss 3.217, lr 5e-04, 1234 images/s"
    line = tqdm.format_meter(123_456, 200_000, 90_000, bar_format=BAR_FORMAT, postfix=postfix)
    assert line.endswith(f"123456/200000 [25:00:00<15:30:00, {postfix}]")
    assert len(line) <= 80
