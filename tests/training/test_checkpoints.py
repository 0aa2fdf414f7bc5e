"""Folders of a run: whole or not there, and nobody else's."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from runner import Run, contents
from small_models import LeavesAMark

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.checkpoints import (
    STATE_FILE,
    atomic_folder,
    checkpoint_folder,
    find_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
    write_json,
    writing,
)
from ituning_hf.training.cli import train
from ituning_hf.training.errors import TrainingError
from ituning_hf.training.run_folder import claim_output_dir

Settings = Callable[..., TrainArguments]


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as draft:
        (draft / "file").write_text(text)


def write_half(folder: Path) -> None:
    with atomic_folder(folder) as draft:
        (draft / "file").write_text("half")
        raise OSError("disk full")


def claim(run: Path, resume_from: str | None = None) -> Path | None:
    """Claim a folder and let it go again."""
    with claim_output_dir(run, resume_from, {"seed": 7}) as start:
        return start


def checkpoint(run: Path, step: int) -> Path:
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_text("{}")
    return folder


def test_a_folder_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path):
    write(tmp_path / "best", "old")
    write(tmp_path / "best", "new")
    assert (tmp_path / "best" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path: Path):
    write(tmp_path / "best", "old")
    with pytest.raises(OSError, match="disk full"):
        write_half(tmp_path / "best")
    assert (tmp_path / "best" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path):
    write(tmp_path / "best", "old")
    (tmp_path / "best").rename(tmp_path / ".best.old")  # as the crash left it
    with pytest.raises(OSError, match="disk full"):
        write_half(tmp_path / "best")
    assert (tmp_path / "best" / "file").read_text() == "old"


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    happened: list[str] = []
    fsync, rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def move(source: Path, target: Path, **options: None) -> None:
        happened.append(f"{Path(source).name} -> {Path(target).name}")
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", move)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "best", "new")
    assert happened == ["file", ".best.partial", ".best.partial -> best", "run"]
    happened.clear()
    write_json(tmp_path / "run" / "run.json", {})
    assert happened == [".run.json.partial", "run"]


def test_half_written_checkpoints_are_not_seen(tmp_path: Path):
    whole = checkpoint(tmp_path, 7)
    checkpoint_folder(tmp_path, 9).mkdir()
    (tmp_path / "checkpoints" / ".step_00000011.partial").mkdir()
    assert list_checkpoints(tmp_path) == [whole]
    assert find_checkpoint(tmp_path, "latest") == whole


def test_the_newest_checkpoints_are_kept(tmp_path: Path):
    folders = [checkpoint(tmp_path, step) for step in (90, 100, 1000)]
    remove_old_checkpoints(tmp_path, keep=2)
    assert list_checkpoints(tmp_path) == folders[1:]


def test_a_removed_checkpoint_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)

    def killed(path: Path) -> None:
        assert list_checkpoints(tmp_path) == [new]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_old_checkpoints(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [new]
    assert claim(tmp_path, "latest") == new
    assert list((tmp_path / "checkpoints").iterdir()) == [new]
    assert not old.exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="latest: there is no checkpoint in"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(FileNotFoundError, match=r"elsewhere is no checkpoint: it has no trainer_state\.json"):
        find_checkpoint(tmp_path, str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        claim(tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "step_00000001"))
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused_unless_it_is_resumed(tmp_path: Path):
    run, other = tmp_path / "run", checkpoint(tmp_path / "other", 5)
    claim(run)
    assert json.loads((run / "run.json").read_text()) == {"settings": {"seed": 7}}
    folder = checkpoint(run, 5)
    with pytest.raises(FileExistsError, match="holds another run: give another folder"):
        claim(run)
    with pytest.raises(ValueError, match="lies outside --output_dir"):
        claim(run, str(other))
    assert claim(run, "latest") == claim(run, str(folder)) == folder


@pytest.mark.parametrize("shown", ["best", "last"])
def test_a_captioner_is_not_written_over_by_a_new_run(tmp_path: Path, shown: str):
    claim(tmp_path)
    (tmp_path / shown).mkdir()
    with pytest.raises(FileExistsError, match="holds another run"):
        claim(tmp_path)


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path):
    """Killed before the first one, it has nothing to lose, and one command starts it and goes on with it."""
    assert claim(tmp_path / "run", "latest") is None
    for name in ("best", "checkpoints"):
        (tmp_path / "run" / name).mkdir()
    assert claim(tmp_path / "run", "latest") is None
    (tmp_path / "run" / "best").rmdir()
    assert claim(tmp_path / "run") is None


def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path: Path):
    claim(tmp_path)
    (tmp_path / "last").mkdir()
    with pytest.raises(
        FileExistsError, match="holds a finished run without checkpoints: there is nothing to"
    ):
        claim(tmp_path, "latest")


def test_a_run_that_failed_at_once_leaves_its_folder_free(tmp_path: Path):
    with pytest.raises(ValueError, match="bad data"), claim_output_dir(tmp_path, None, {}):
        raise ValueError("bad data")
    assert sorted(contents(tmp_path)) == [".lock"]


def test_what_a_killed_run_left_half_done_is_cleared_away(tmp_path: Path):
    whole = checkpoint(tmp_path, 3)
    for folder in (
        ".best.old",
        ".last.partial",
        "checkpoints/.step_00000004.partial",
        "backbones/.text.partial",
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").touch()
    for file in (".run.json.partial", ".log.jsonl.partial", "mine.old", ".mine.partial"):
        (tmp_path / file).touch()
    assert claim(tmp_path, "latest") == whole
    kept = [".lock", ".mine.partial", "best/file", "checkpoints/step_00000003/trainer_state.json", "mine.old"]
    assert sorted(contents(tmp_path)) == kept


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"cannot be written to .*: give a folder that can"):
        claim(tmp_path / "file" / "run")


def hold(run: Path, ready: multiprocessing.Event) -> None:
    with claim_output_dir(run, None, {}):
        # What it forks, as the data loader does, must not keep the folder after it.
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
        ready.set()
        time.sleep(60)


def claim_soon(run: Path) -> Path | None:
    """Claim a folder whose holder was killed: its files may be closed a moment after it counts as dead."""
    for _ in range(100):
        try:
            return claim(run)
        except FileExistsError:
            time.sleep(0.05)
    return claim(run)


def test_a_folder_is_held_as_long_as_its_run_lives(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(300)
    for resume_from in (None, "latest"):
        with pytest.raises(FileExistsError, match="another run is at work in --output_dir"):
            claim(tmp_path, resume_from)
    process.kill()
    process.join()
    assert claim_soon(tmp_path) is None


def test_a_second_run_is_refused_while_the_first_is_at_work(settings: Settings):
    args = settings(max_train_steps=100_000, eval_split="none")
    first = Run(args)
    first.wait_for_step(1)
    second = Run(args)
    assert second.end() == 2, second.printed
    message = f"ituning: error: another run is at work in --output_dir {args.output_dir}: give another folder"
    assert message in second.printed
    first.signal(signal.SIGKILL)
    first.end()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/best/file"),
            "run/best/file could not be written ",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), r"run/best could not be written \(No space left"),
        (
            RuntimeError("PytorchStreamWriter failed"),
            r"run/best could not be written \(PytorchStreamWriter fai",
        ),
    ],
)
def test_what_cannot_be_written_is_named_with_the_reason(error: Exception, message: str):
    with pytest.raises(TrainingError, match=message) as caught, writing(Path("run/best")):
        raise error
    assert str(caught.value).endswith(
        "latest goes on from the newest whole checkpoint, or from the beginning if there is none."
    )


FEW = {"max_train_steps": 4, "checkpointing_steps": "2", "eval_split": "none"}
MANY = {"max_train_steps": 60, "checkpointing_steps": "30", "eval_split": "none"}


def run_to_half(args: TrainArguments) -> dict[str, bytes]:
    """Leave a run as one killed after its first checkpoint leaves it; return what it is when complete."""
    run = Run(args)
    assert run.end() == 0, run.printed
    complete = contents(args.output_dir)
    shutil.rmtree(Path(args.output_dir) / "last")
    shutil.rmtree(list_checkpoints(Path(args.output_dir))[-1])
    return complete


def assert_fails(args: TrainArguments, named: str, file_limit: int | None = None) -> None:
    checkpoint = list_checkpoints(Path(args.output_dir))[-1]
    before = contents(checkpoint)
    run = Run(args, file_limit=file_limit)
    assert run.end() == 1, run.printed
    message = run.printed.splitlines()[-2]  # the last line is the runner's own
    assert re.search(rf"ituning: error: .*{named}.* could not be written \(.+\)\. Make room", message)
    assert "Traceback" not in run.printed
    assert contents(checkpoint) == before


def assert_goes_on(args: TrainArguments, complete: dict[str, bytes]) -> None:
    run = Run(args)
    assert run.end() == 0, run.printed
    assert contents(args.output_dir) == complete


@pytest.mark.parametrize(
    ("limit", "common", "named"),
    [
        (20_000, FEW, "step_00000004"),  # safetensors' error
        (40_000, FEW, "step_00000004"),  # PyTorch's
        (20_000, FEW | {"eval_split": "val"}, "best"),
        (3_000, MANY, "log.jsonl"),
    ],
)
def test_a_file_that_cannot_grow_ends_the_run_and_keeps_the_checkpoint(
    settings: Settings, limit: int, common: dict, named: str
):
    args = settings(**common, resume_from_checkpoint="latest")
    complete = run_to_half(args)
    assert_fails(args, named, file_limit=limit)
    assert_goes_on(args, complete)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(settings: Settings, small_disk: Path):
    args = settings(**FEW, resume_from_checkpoint="latest", output_dir=str(small_disk / "run"))
    complete = run_to_half(args)
    room = shutil.disk_usage(small_disk).free
    (small_disk / "others").write_bytes(bytes(room - 50_000))
    assert_fails(args, "step_00000004")
    (small_disk / "others").unlink()
    assert_goes_on(args, complete)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_ends_the_run_and_keeps_the_checkpoint(settings: Settings):
    args = settings(**FEW, resume_from_checkpoint="latest")
    complete = run_to_half(args)
    folder = Path(args.output_dir) / "checkpoints"
    folder.chmod(0o500)
    assert_fails(args, "step_00000004")
    folder.chmod(0o700)
    assert_goes_on(args, complete)


def test_a_run_that_ended_before_it_deleted_old_checkpoints_deletes_them(settings: Settings):
    options = {"max_train_steps": 3, "checkpointing_steps": "1", "max_checkpoints": 2}
    args = settings(**options)
    assert Run(args).end() == 0
    complete = contents(args.output_dir)
    run = Path(args.output_dir)
    shutil.copytree(list_checkpoints(run)[0], run / "checkpoints" / "step_00000001")
    shutil.rmtree(run / "last")
    assert Run(settings(**options, resume_from_checkpoint="latest")).end() == 0
    assert contents(args.output_dir) == complete


def test_a_run_that_goes_back_makes_what_came_after_again(settings: Settings):
    args = settings(max_train_steps=4, checkpointing_steps="1", max_checkpoints=3)
    assert Run(args).end() == 0
    complete = contents(args.output_dir)
    older = list_checkpoints(Path(args.output_dir))[0]
    again = settings(
        max_train_steps=4, checkpointing_steps="1", max_checkpoints=3, resume_from_checkpoint=str(older)
    )
    run = Run(again)
    run.wait_for("validation loss")
    assert run.end() == 0
    assert "complete" not in run.printed
    assert contents(args.output_dir) == complete


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"])
def test_a_checkpoint_from_a_stranger_runs_no_code(settings: Settings, tmp_path: Path, name: str):
    train(settings(max_train_steps=1))
    mark = tmp_path / "mark"
    torch.save(LeavesAMark(mark), list_checkpoints(tmp_path / "run")[0] / name)
    again = settings(max_train_steps=1, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"step_00000001 is damaged \(.*: resume from another checkpoint"):
        train(again)
    assert not mark.exists()
