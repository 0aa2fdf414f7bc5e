"""The scripts as a user starts them: by `accelerate launch`, and on two processes by `torchrun`."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import read_log, validation_scores

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.validation import SCORE_NAMES

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"
Settings = Callable[..., TrainArguments]


def flags(args: TrainArguments) -> list[str]:
    """Write settings as a command line; an empty list is a word there."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in args.to_dict().items()}
    given = {name: values or ["none"] for name, values in lists.items() if values != [None]}
    return [part for name, values in given.items() for part in (f"--{name}", *map(str, values))]


def run(command: list[str], folder: Path, expect: int = 0) -> str:
    """Run a command of this environment elsewhere, and return what it printed, errors last."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + (done.stderr if expect else "")


def test_accelerate_launch_trains(settings: Settings, tmp_path: Path):
    args = settings(max_train_steps=2)
    printed = run(["accelerate", "launch", "--cpu", str(SCRIPT), *flags(args)], tmp_path)
    assert "validation loss" in printed
    assert (Path(args.output_dir) / "best" / "model.safetensors").is_file()


def test_two_processes_take_the_steps_of_one_and_find_the_same(settings: Settings, tmp_path: Path):
    """Captions differ in length, so that a mean of the processes' means would be another loss.

    Of three validation images one cannot be read: each process captions one of the first two, and the next
    in its place is one process's alone.
    """
    common = {"max_train_steps": 16, "checkpointing_steps": "4", "max_checkpoints": 4}
    common |= {"eval_steps": "4", "eval_caption_images": 2, "num_sample_captions": 2}
    common |= {"max_unreadable_share": 0.4, "lr_scheduler_type": "linear"}
    one = settings(**common, output_dir=str(tmp_path / "one"), per_device_train_batch_size=4)
    two = settings(**common, output_dir=str(tmp_path / "two"), per_device_train_batch_size=2)
    (Path(one.dataset) / "val" / "1.png").write_bytes(b"not a picture")
    run(["accelerate", "launch", "--cpu", str(SCRIPT), *flags(one)], tmp_path)
    launch = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    printed = run([*launch, str(SCRIPT), *flags(two), "--mixed_precision", "no"], tmp_path)
    checkpoints = [tmp_path / name / "checkpoints" / "step_00000004" for name in ("one", "two")]
    state = (checkpoints[1] / "trainer_state.json").read_text()
    assert re.search(r'"num_processes": 2\b', state), state
    ours, theirs = (load_file(folder / "adapter.safetensors") for folder in checkpoints)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    for name in SCORE_NAMES:
        expected = validation_scores(one.output_dir, name)
        assert list(expected) == [0, 4, 8, 12, 16]
        assert expected[16] > 0
        assert validation_scores(two.output_dir, name) == pytest.approx(expected, rel=1e-3), name
    samples = [[r.get("samples") for r in read_log(args.output_dir)] for args in (one, two)]
    assert samples[0] == samples[1]
    assert list(samples[0][0]) == ["val/0.png", "val/2.png"]
    assert printed.count("captions of 2 validation images") == 5  # the main process's alone


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"dataset": "nowhere"}, 2, "ituning: error: no data set at 'nowhere': give 'scenes', the path"),
        ({"learning_rate": 1e30, "max_grad_norm": 0.0}, 1, "ituning: error: The loss is nan at step"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    settings: Settings, tmp_path: Path, change: dict, code: int, message: str
):
    printed = run(["ituning", "train", *flags(settings(**change))], tmp_path, expect=code)
    assert message in printed.splitlines()[-1]
    assert "Traceback" not in printed


@pytest.mark.slow
def test_the_bare_line_trains_on_the_built_in_scenes(tmp_path: Path):
    printed = run(["accelerate", "launch", str(SCRIPT)], tmp_path)
    losses = [float(loss) for loss in re.findall(r"validation loss ([\d.]+)", printed)]
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "outputs" / "captioner" / "best" / "model.safetensors").is_file()
