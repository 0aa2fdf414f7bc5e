"""A run that is killed at any point, and goes on by the same command, is the run that was never killed."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runner import Run, contents, flags, start, torchrun

from ituning_hf.training import TrainArguments
from ituning_hf.training.checkpoints import list_checkpoints

Settings = Callable[..., TrainArguments]
SIGKILL = -signal.SIGKILL

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
        # The second time it has less to do, and may end before it is killed.
        assert Run(cut, kill_at=kill_at).end() in (SIGKILL, 0)
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
def test_random_kill_points(settings: Settings, tmp_path: Path, setup: str, capsys: pytest.CaptureFixture):
    """Half of the kills fall between operations on files, half at any time of the run's life."""
    rng = random.Random(setup)
    finish(make(settings, tmp_path, setup, "first"))  # what all runs import is imported by the first
    whole = make(settings, tmp_path, setup, "whole")
    started = time.monotonic()
    operations = finish(whole).file_operations
    seconds = time.monotonic() - started
    failed = []
    for point in range(8):
        cut, kills = make(settings, tmp_path, setup, f"cut{point}"), []
        for _ in range(rng.randint(1, 3)):
            if point % 2:
                kill_at = rng.randint(1, operations)
                code, what = Run(cut, kill_at=kill_at).end(), f"file operation {kill_at} of {operations}"
            else:
                wait = rng.uniform(0, seconds)
                run = Run(cut)
                time.sleep(wait)
                run.signal(signal.SIGKILL, group=True)
                code, what = run.end(), f"{wait:.2f} s of {seconds:.2f} s"
            kills.append(f"{what}, step {last_step(cut)}" + ("" if code == SIGKILL else " (over before)"))
        finish(cut)
        failed += differences(cut, whole)
        report(capsys, setup, kills, failed)
    assert not failed


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
def test_random_kill_points_of_two_processes(
    settings: Settings, tmp_path: Path, victim: str, capsys: pytest.CaptureFixture
):
    whole, cut = (make(settings, tmp_path, "2 processes", name) for name in ("whole", "cut"))
    complete(torchrun(whole))
    lines = random.randint(1, 9)
    killed = torchrun(cut)
    wait_for_lines(killed, cut, lines)
    time.sleep(random.uniform(0, 0.3))
    if victim == "all":
        kill(killed)
    else:
        kill_rank(killed, victim[-1])
        killed.communicate(timeout=300)
        assert killed.returncode == 1  # torchrun ended the other one
    step = last_step(cut)
    complete(torchrun(cut))
    failed = differences(cut, whole)
    report(capsys, "2 processes", [f"{victim}, log line {lines}, step {step}"], failed)
    assert not failed


def adapters(args: TrainArguments) -> dict[str, bytes]:
    """Return the saved adapters; beside them stands the place of the backbones."""
    return {n: b for n, b in contents(args.output_dir).items() if n.endswith("model.safetensors")}


def report(capsys: pytest.CaptureFixture, setup: str, kills: list[str], failed: list[str]) -> None:
    with capsys.disabled():
        equal = "all files equal" if not failed else f"DIFFERENT: {failed}"
        hit = sum("over before" not in kill for kill in kills)
        sys.stdout.write(f"\n| {setup} | {hit} | {'; '.join(kills)} | {equal} |")


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


def last_step(args: TrainArguments) -> int:
    """Return the step of the newest checkpoint, 0 before the first."""
    newest = list_checkpoints(Path(args.output_dir))[-1:]
    return int(newest[0].name.removeprefix("step_")) if newest else 0
