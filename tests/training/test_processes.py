"""Several processes train as one does, and the ways in which users start them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import flags, run_on_two
from safetensors.torch import load_file
from small_models import read_log, validation_scores
from torchrun import ENVIRONMENT, SCRIPT

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.run import train
from ituning_hf.training.validation import SCORE_NAMES

Settings = Callable[..., TrainArguments]


def launch(arguments: list[str], folder: Path) -> str:
    """Run `accelerate launch examples/train.py` in a folder, and return what it printed."""
    program = str(Path(sys.executable).parent / "accelerate")
    done = subprocess.run(
        [program, "launch", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_accelerate_launch_trains(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=2)
    assert "validation loss" in launch(["--cpu", str(SCRIPT), *flags(args)], tmp_path)
    assert (Path(args.output_dir) / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_bare_command_trains_on_the_built_in_scenes(tmp_path: Path):
    losses = re.findall(r"validation loss ([\d.]+)", launch([str(SCRIPT)], tmp_path))
    assert float(losses[-1]) < 0.9 * float(losses[0])
    assert (tmp_path / "outputs" / "captioner" / "best" / "model.safetensors").is_file()


def test_two_processes_find_what_one_does(settings: Settings, tmp_path: Path):
    """Captions differ in length, so that a mean of the processes' means would be another loss.

    Of three validation images one cannot be read: each process captions one of the first two, and one process
    alone the third, which replaces it.
    """
    common = {"max_train_steps": 16, "checkpointing_steps": "4", "max_checkpoints": 4}
    common |= {"eval_steps": "4", "eval_caption_images": 2, "num_sample_captions": 2}
    common |= {"max_unreadable_share": 0.4, "lr_scheduler_type": "linear"}
    one = settings(**common, output_dir=str(tmp_path / "one"), per_device_train_batch_size=4)
    two = replace(one, output_dir=str(tmp_path / "two"), per_device_train_batch_size=2)
    (Path(one.dataset) / "val" / "1.png").write_bytes(b"not a picture")
    train(one)
    runs = run_on_two(two, tmp_path)
    assert [run.end() for run in runs] == [0, 0], [run.printed for run in runs]
    checkpoints = [tmp_path / name / "checkpoints" / "step_00000004" for name in ("one", "two")]
    assert json.loads((checkpoints[1] / "trainer_state.json").read_text())["num_processes"] == 2
    ours, theirs = (load_file(folder / "adapter.safetensors") for folder in checkpoints)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    for name in SCORE_NAMES:
        expected = validation_scores(one.output_dir, name)
        assert list(expected) == [0, 4, 8, 12, 16]
        assert expected[16] > 0
        assert validation_scores(two.output_dir, name) == pytest.approx(expected, rel=1e-3), name
    samples = [[entry.get("samples") for entry in read_log(args.output_dir)] for args in (one, two)]
    assert samples[0] == samples[1]
    assert list(samples[0][0]) == ["val/0.png", "val/2.png"]
    printed = [run.printed.count("captions of 2 validation images") for run in runs]
    assert printed == [5, 0]
