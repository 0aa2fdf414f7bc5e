"""Several processes train as one does; `accelerate launch` starts a run."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from processes import run_on_two
from runs import SCRIPT, Settings, command, flags, samples
from safetensors.torch import load_file
from small_models import validation_scores

from ituning_hf.training.run import train
from ituning_hf.training.validation import SCORERS


def test_accelerate_launch_trains(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The script runs here, with the arguments and the environment that `accelerate launch` gives it."""
    args = settings(max_train_steps=1)
    popen = Mock(return_value=Mock(returncode=0))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        launch_command(launch_command_parser().parse_args(["--cpu", str(SCRIPT), *flags(args)]))
    popen.assert_called_once()
    [given], environment = popen.call_args.args, popen.call_args.kwargs["env"]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    os.environ.update(environment)
    monkeypatch.setattr(sys, "argv", given[1:])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(given[1], run_name="__main__")
    assert "validation loss" in capsys.readouterr().out
    assert (Path(args.output_dir) / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_accelerate_launch_without_options_trains_on_scenes(tmp_path: Path):
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", str(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    losses = re.findall(r"validation loss ([\d.]+)", done.stdout)
    assert float(losses[-1]) < 0.9 * float(losses[0])
    assert (tmp_path / "outputs" / "captioner" / "best" / "model.safetensors").is_file()


def test_two_processes_give_the_results_of_one(settings: Settings, tmp_path: Path):
    """Captions differ in length, so the mean of the processes' mean losses would be another loss.

    One of three validation images cannot be read: each process captions one of the first two, and one process
    alone the third, which replaces it.
    """
    common = {"max_train_steps": 16, "checkpointing_steps": "4", "max_checkpoints": 4, "eval_steps": "8"}
    common |= {"eval_caption_images": 2, "num_sample_captions": 2, "max_unreadable_share": 0.4}
    common |= {"lr_scheduler_type": "linear"}
    one = settings("one", **common, per_device_train_batch_size=4)
    two = settings("two", **common, per_device_train_batch_size=2)
    (Path(one.dataset) / "val" / "1.png").write_bytes(b"not a picture")
    train(one)
    runs = run_on_two(command(two), tmp_path)
    folders = [tmp_path / name / "checkpoints" / "step_00000004" for name in ("one", "two")]
    assert json.loads((tmp_path / "two" / "last" / "training.json").read_text())["num_processes"] == 2
    ours, theirs = (load_file(folder / "adapter.safetensors") for folder in folders)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    for name in ("loss", *SCORERS):
        expected = validation_scores(one.output_dir, name)
        assert list(expected) == [0, 8, 16]
        assert expected[16] > 0
        assert validation_scores(two.output_dir, name) == pytest.approx(expected, rel=1e-3), name
    assert samples(one) == samples(two)
    assert list(samples(one)[0]) == ["val/0.png", "val/2.png"]
    printed = [run.printed.count("captions of 2 validation images") for run in runs]
    assert printed == [3, 0]
