"""A build that is killed at any point and goes on by the same command is as one that was never killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ituning_hf.data.scenes import read_scenes
from ituning_hf.features.store import FeatureStore

from .builder import SIGKILL, Builder
from .conftest import contents, shards

SCENES = 60
KILLED_BUILDS = 10


@pytest.fixture
def flags(backbones: dict[str, Path]) -> list[str]:
    """60 + 6 + 6 scenes in 9 shards of at most 3 batches each."""
    values = {
        "dataset": "scenes",
        "num_scenes": SCENES,
        "vision_model": backbones["vision"],
        "shard_size": 8,
        "batch_size": 3,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def finish(flags: list[str], folder: Path) -> Builder:
    run = Builder(flags, folder)
    assert run.end() == 0, run.printed
    return run


def differences(ours: Path, theirs: Path) -> list[str]:
    one, two = contents(ours), contents(theirs)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def check_images(folder: Path) -> None:
    """Nothing was lost, and nothing is there twice."""
    sizes = {"train": SCENES, "val": SCENES // 10, "test": SCENES // 10}
    names = {record.name for split, size in sizes.items() for record in read_scenes(split, size)}
    store = FeatureStore(folder)
    assert store.names == names
    one = store.spec.bytes_per_image
    assert len(names) * one < store.num_bytes < len(names) * (one + 300)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_killed_between_operations_on_its_files(flags: list[str], tmp_path: Path, workers: int):
    flags = [*flags, "--dataloader_num_workers", str(workers)]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    operations = finish(flags, whole).file_operations
    for kill_at in (3, operations // 3, operations // 2):  # each goes on from the last
        assert Builder(flags, cut, kill_at=kill_at).end() == SIGKILL
    finish(flags, cut)
    assert differences(cut, whole) == []
    check_images(cut)


def test_what_a_killed_build_leaves_can_be_read(flags: list[str], tmp_path: Path):
    run = Builder(flags, tmp_path / "cut")
    run.wait_for_shards(2)
    run.signal(signal.SIGKILL)
    assert run.end() == SIGKILL
    store = FeatureStore(tmp_path / "cut")
    for name in store.names:
        assert store.read(name).shape == (10, 15)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [0, 2])
def test_signals_end_a_build_at_once(flags: list[str], tmp_path: Path, signum: int, code: int, workers: int):
    many = [*flags, "--num_scenes", "3000", "--dataloader_num_workers", str(workers)]
    run = Builder(many, tmp_path / "cut")
    run.wait_for_shards(2)
    run.signal(signum)
    start = time.monotonic()
    assert run.end() == code
    # Most take a fraction of a second; PyTorch gives a worker that has not heard of the end 5 s.
    assert time.monotonic() - start < 10
    assert "ituning: stopped: the same command goes on from here\n" in run.printed
    assert "Traceback" not in run.printed
    assert not list((tmp_path / "cut").glob(".*.partial"))
    assert 2 <= len(shards(tmp_path / "cut")) < 400


def test_two_builders_at_once(flags: list[str], tmp_path: Path):
    many = [*flags, "--num_scenes", "1000"]
    first = Builder(many, tmp_path / "store")
    first.wait_for_shards(1)
    second = Builder(many, tmp_path / "store", kill_at=None)
    assert second.end() == 2
    assert "another build is at work in" in second.printed
    first.signal(signal.SIGKILL)
    assert first.end() == SIGKILL


@pytest.mark.stress
def test_random_kill_points(backbones: dict[str, Path], tmp_path: Path):
    """Half of the kills fall between operations on files, half at any time, upon a process of its own."""
    rng = random.Random(0)
    values = {"dataset": "scenes", "num_scenes": 1500, "vision_model": backbones["vision"], "shard_size": 50}
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    whole = tmp_path / "whole"
    operations = finish(flags, whole).file_operations
    for point in range(KILLED_BUILDS):
        cut = tmp_path / f"cut{point}"
        if point % 2:
            assert Builder(flags, cut, kill_at=rng.randint(1, operations)).end() == SIGKILL
        else:
            kill_command(flags, cut, rng.randint(0, 34), rng.uniform(0, 0.1))
        process = start_command(flags, cut)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert differences(cut, whole) == []


def start_command(flags: list[str], folder: Path) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).parent / "ituning")
    command = [program, "features", "build", *flags, "--output_dir", str(folder)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def kill_command(flags: list[str], folder: Path, count: int, wait: float) -> None:
    """Kill the command with all its processes some time after the store has so many shards."""
    process = start_command(flags, folder)
    while not (folder / "store.json").exists() or len(shards(folder)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    time.sleep(wait)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate(timeout=60)
    assert process.returncode == SIGKILL
