"""A run that is killed at any point, and goes on by the same command, is the run that was never killed."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runner import Run, contents, flags, start, torchrun

from ituning_hf.training.arguments import TrainArguments

Settings = Callable[..., TrainArguments]
SIGKILL = -signal.SIGKILL

KILLED_RUNS = 8  # of each setup; each is killed once to three times

# 11 images: an epoch is 3 steps of 4 images. Checkpoints fall between validations as well as upon them.
COMMON = {
    "max_train_steps": 9,
    "checkpointing_steps": "2",
    "adapter_dropout": 0.3,
    "resume_from_checkpoint": "latest",
}
SETUPS = {
    "one process": {},
    "2 workers, 2 batches a step": {
        "dataloader_num_workers": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "bf16": {"mixed_precision": "bf16"},
    "2 processes": {"per_device_train_batch_size": 2},
}


def make(settings: Settings, tmp_path: Path, setup: str, name: str) -> TrainArguments:
    return settings(**COMMON, **SETUPS[setup], output_dir=str(tmp_path / name))


def finish(args: TrainArguments) -> Run:
    run = Run(args)
    assert run.end() == 0, run.printed
    return run


def differences(ours: TrainArguments, theirs: TrainArguments) -> list[str]:
    """Return the files that two runs have not in common, byte for byte."""
    one, two = contents(ours.output_dir), contents(theirs.output_dir)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_between_operations_on_its_files_is_the_same_run(
    settings: Settings, tmp_path: Path, seed: int
):
    setup = ["one process", "bf16"][seed % 2]
    whole, cut = (make(settings, tmp_path, setup, name) for name in ("whole", "cut"))
    operations = finish(whole).file_operations
    for kill_at in random.Random(seed).sample(range(1, operations), 2):
        code = Run(cut, kill_at=kill_at).end()
        assert code in (SIGKILL, 0)  # the second time it has less to do, and may end before it is killed
    finish(cut)
    assert differences(cut, whole) == []


def test_the_command_killed_at_a_step_goes_on(settings: Settings, tmp_path: Path):
    setup = "2 workers, 2 batches a step"
    whole, cut = (make(settings, tmp_path, setup, name) for name in ("whole", "cut"))
    finish(whole)
    killed = start(["ituning", "train", *flags(cut)])
    wait_for_lines(killed, cut, 4)
    kill(killed)
    complete(start(["ituning", "train", *flags(cut)]))
    assert differences(cut, whole) == []

    finished = contents(cut.output_dir)
    assert "This run is complete: there is nothing left to do." in finish(cut).printed
    assert contents(cut.output_dir) == finished


@pytest.mark.stress
@pytest.mark.parametrize("setup", [name for name in SETUPS if name != "2 processes"])
def test_random_kill_points(settings: Settings, tmp_path: Path, setup: str):
    """Half of the kills fall between operations on files, half at any time of the run's life."""
    rng = random.Random(setup)
    finish(make(settings, tmp_path, setup, "first"))  # what all runs import is imported by the first
    whole = make(settings, tmp_path, setup, "whole")
    started = time.monotonic()
    operations = finish(whole).file_operations
    seconds = time.monotonic() - started
    for point in range(KILLED_RUNS):
        cut = make(settings, tmp_path, setup, f"cut{point}")
        for _ in range(rng.randint(1, 3)):
            if point % 2:
                Run(cut, kill_at=rng.randint(1, operations)).end()
            else:
                run = Run(cut)
                time.sleep(rng.uniform(0, seconds))
                run.signal(signal.SIGKILL, group=True)
                run.end()
        finish(cut)
        assert differences(cut, whole) == []


@pytest.mark.stress
def test_small_backbones_left_half_made_are_made_again(photos: Path, tmp_path: Path):
    def args(name: str) -> TrainArguments:
        common = {"dataset": str(photos), "max_train_steps": 2, "resume_from_checkpoint": "latest"}
        return TrainArguments(**common, output_dir=str(tmp_path / name))

    finish(args("whole"))
    killed = Run(args("cut"))
    killed.wait_until(lambda: (tmp_path / "cut" / "backbones" / ".vision.partial").exists())
    killed.signal(signal.SIGKILL, group=True)
    assert killed.end() == SIGKILL
    finish(args("cut"))
    ours, theirs = (contents(tmp_path / name / "backbones") for name in ("cut", "whole"))
    assert ours == theirs
    assert adapters(args("cut")) == adapters(args("whole"))


@pytest.mark.stress
@pytest.mark.parametrize("victim", ["all", "rank 0", "rank 1"])
def test_random_kill_points_of_two_processes(settings: Settings, tmp_path: Path, victim: str):
    whole, cut = (make(settings, tmp_path, "2 processes", name) for name in ("whole", "cut"))
    complete(torchrun(whole))
    killed = torchrun(cut)
    wait_for_lines(killed, cut, random.randint(1, 9))
    time.sleep(random.uniform(0, 0.3))
    if victim == "all":
        kill(killed)
    else:
        kill_rank(killed, victim[-1])
        killed.communicate(timeout=300)
        assert killed.returncode == 1  # torchrun ended the other one
    complete(torchrun(cut))
    assert differences(cut, whole) == []


def adapters(args: TrainArguments) -> dict[str, bytes]:
    """Return the saved adapters; beside them stands the place of the backbones."""
    return {n: b for n, b in contents(args.output_dir).items() if n.endswith("model.safetensors")}


def complete(process: subprocess.Popen[str]) -> None:
    printed = process.communicate(timeout=900)
    assert process.returncode == 0, printed


def wait_for_lines(process: subprocess.Popen[str], args: TrainArguments, lines: int) -> None:
    log = Path(args.output_dir) / "log.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a command with all its processes; torchrun's are in sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()  # none may see another one's end and act on it
    for member in family:
        member.kill()
    process.communicate(timeout=60)
    assert process.returncode == SIGKILL


def kill_rank(process: subprocess.Popen[str], rank: str) -> None:
    workers = psutil.Process(process.pid).children()
    next(worker for worker in workers if worker.environ().get("RANK") == rank).kill()
