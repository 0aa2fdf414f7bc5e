"""A run that is killed at any time and resumed writes the same bytes as an uninterrupted run."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import psutil
import pytest
from processes import Command
from runs import Settings, command, count_log_lines, differences, torchrun, wait_for_log

from ituning_hf.training.run import train

KILLED_RUNS = 6  # of each setup in the long form

# An epoch is 3 steps of 4 images. Checkpoints fall between validations and on them.
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
        "num_sample_captions": 0,
    },
    "bf16": {"mixed_precision": "bf16"},
}

_FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
_watchers: list[Callable[[str], None]] = []


@cache
def install_audit_hook() -> None:
    """Call the last watcher with each path that Python is about to change; a hook cannot be removed."""

    def audit(event: str, arguments: tuple) -> None:
        if _watchers and event in _FILE_EVENTS:
            _watchers[-1](str(arguments[0]))

    sys.addaudithook(audit)


@contextmanager
def snapshots(run: str, every: int, folder: Path) -> Iterator[list[Path]]:
    """Copy a run's folder before every so many operations on its files: the states a kill could leave.

    Yields:
        The copies so far.
    """
    install_audit_hook()
    copies: list[Path] = []
    count, process = 0, os.getpid()

    def watch(path: str) -> None:
        nonlocal count
        if os.getpid() == process and path.startswith(run + os.sep):
            count += 1
            if count % every == 0:
                _watchers.append(lambda path: None)  # not of the copying itself
                copies.append(shutil.copytree(run, folder / f"killed at {count}"))
                _watchers.pop()

    _watchers.append(watch)
    try:
        yield copies
    finally:
        _watchers.pop()


@pytest.mark.parametrize(
    ("setup", "every"),
    [("bf16", 97), *(pytest.param(setup, 5, marks=pytest.mark.stress) for setup in SETUPS)],
)
def test_a_run_killed_between_two_file_operations_resumes(
    settings: Settings, tmp_path: Path, setup: str, every: int
):
    args = settings("whole", **COMMON, **SETUPS[setup])
    with snapshots(args.output_dir, every, tmp_path) as copies:
        train(args)
    assert len(copies) >= 2
    for copy in copies:
        train(replace(args, output_dir=str(copy)))
        assert differences(copy, args.output_dir) == [], copy.name
        shutil.rmtree(copy)


def test_a_run_killed_with_its_workers_resumes(settings: Settings, tmp_path: Path):
    setup = SETUPS["2 workers, 2 batches a step"]
    whole, cut = (settings(name, **COMMON, **setup) for name in ("whole", "cut"))
    train(whole)
    run = Command(command(cut), tmp_path / "output")
    wait_for_log(run, cut, 4)
    run.kill()
    train(cut)
    assert differences(cut.output_dir, whole.output_dir) == []


@pytest.mark.stress
@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_killed_at_any_time_resumes(settings: Settings, tmp_path: Path, setup: str):
    rng = random.Random(setup)
    whole = settings("whole", **COMMON, **SETUPS[setup])
    train(whole)
    started = time.monotonic()
    timed = command(replace(whole, output_dir=str(tmp_path / "timed")))
    assert Command(timed, tmp_path / "output").end() == 0
    seconds = time.monotonic() - started
    for point in range(KILLED_RUNS):
        cut = replace(whole, output_dir=str(tmp_path / f"cut{point}"))
        for _ in range(rng.randint(1, 3)):
            run = Command(command(cut), tmp_path / "output")
            time.sleep(rng.uniform(0, seconds))
            if run.process.is_alive() and os.getpgid(run.process.pid) == run.process.pid:
                run.kill()
        train(cut)
        assert differences(cut.output_dir, whole.output_dir) == []


@pytest.mark.stress
@pytest.mark.parametrize("victim", ["all", "rank 0", "rank 1"])
def test_two_processes_killed_at_any_time_resume(settings: Settings, tmp_path: Path, victim: str):
    whole, cut = (settings(name, **COMMON, per_device_train_batch_size=2) for name in ("whole", "cut"))
    with torchrun(whole, tmp_path / "whole output") as process:
        assert process.wait(900) == 0
    with torchrun(cut, tmp_path / "output") as process:
        lines = random.randint(1, 9)
        while count_log_lines(cut) < lines:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        launcher = psutil.Process(process.pid)
        ranks = {child.environ().get("RANK"): child for child in launcher.children()}
        killed = [launcher, *launcher.children(recursive=True)] if victim == "all" else [ranks[victim[-1]]]
        for member in killed:
            member.suspend()  # none may react to the end of another
        for member in killed:
            member.kill()
        assert process.wait(300) == (-9 if victim == "all" else 1)  # torchrun ended the other one
    with torchrun(cut, tmp_path / "output again") as process:
        assert process.wait(900) == 0
    assert differences(cut.output_dir, whole.output_dir) == []
