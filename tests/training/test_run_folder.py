"""The folders of a run are complete or absent, and hold one run each."""

import os
import shutil
from pathlib import Path

import pytest
from small_models import contents

from ituning_hf.training.errors import TrainingError
from ituning_hf.training.run_folder import (
    STATE_FILE,
    checkpoint_folder,
    claim_output_dir,
    list_checkpoints,
    new_folder,
    remove_folder,
    writing,
)


def write(folder: Path, text: str, error: Exception | None = None) -> None:
    with writing(folder), new_folder(folder) as draft:
        (draft / "file").write_text(text)
        if error is not None:
            raise error


def claim(run: Path, resume_from: str | None = None) -> Path | None:
    """Claim a folder and release it."""
    with claim_output_dir(run, resume_from) as start:
        return start


def checkpoint(run: Path, step: int) -> Path:
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_text("{}")
    return folder


# --- Written completely or not at all


def test_an_error_while_writing_leaves_the_old_folder(tmp_path: Path):
    write(tmp_path / "best", "old")
    with pytest.raises(TrainingError, match="best could not be written"):
        write(tmp_path / "best", "half", OSError("disk full"))
    assert contents(tmp_path) == {"best/file": b"old"}
    # As a kill between the two renames leaves it.
    (tmp_path / "best").rename(tmp_path / ".best.old")
    with pytest.raises(KeyError):
        write(tmp_path / "best", "half", KeyError("a bug"))
    assert contents(tmp_path) == {"best/file": b"old"}


def test_a_folder_replaces_the_old_one_when_its_files_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "best", "old")
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
    write(tmp_path / "run" / "best", "new")
    renamed = ["best -> .best.old", ".best.partial -> best"]
    assert happened == ["file", ".best.partial", *renamed, "run"]
    assert contents(tmp_path) == {"run/best/file": b"new"}


def test_a_folder_loses_its_name_before_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)

    def killed(path: Path) -> None:
        assert list_checkpoints(tmp_path) == [new]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(old)
    assert list_checkpoints(tmp_path) == [new]
    assert claim(tmp_path, "latest") == new
    assert list((tmp_path / "checkpoints").iterdir()) == [new]


# --- One run in each folder


def test_another_runs_folder_is_refused_unless_it_is_resumed(tmp_path: Path):
    run, other = tmp_path / "run", checkpoint(tmp_path / "other", 5)
    assert claim(run) is None
    folder = checkpoint(run, 5)
    checkpoint_folder(run, 9).mkdir()  # not complete
    with pytest.raises(FileExistsError, match="holds another run: give another folder"):
        claim(run)
    with pytest.raises(ValueError, match="is outside --output_dir"):
        claim(run, str(other))
    assert claim(run, "latest") == claim(run, str(folder)) == folder


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path):
    """After a kill before the first checkpoint, the same command starts the run again."""
    assert claim(tmp_path / "run", "latest") is None
    for name in ("best", "checkpoints"):
        (tmp_path / "run" / name).mkdir()
    assert claim(tmp_path / "run", "latest") is None
    with pytest.raises(FileExistsError, match="holds another run"):
        claim(tmp_path / "run")
    (tmp_path / "run" / "best").rmdir()
    (tmp_path / "run" / "run.json").touch()
    assert claim(tmp_path / "run") is None
    (tmp_path / "run" / "last").mkdir()
    with pytest.raises(FileExistsError, match="holds a finished run without checkpoints: there is nothing"):
        claim(tmp_path / "run", "latest")


def test_a_missing_checkpoint_is_named_and_nothing_is_created(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"step_1 is not a checkpoint: it has no trainer_state\.json"):
        claim(tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "step_1"))
    assert not (tmp_path / "run").exists()


def test_a_killed_runs_drafts_are_removed_and_other_files_are_not(tmp_path: Path):
    whole = checkpoint(tmp_path, 3)
    for folder in (".best.old", ".last.partial", "checkpoints/.step_00000004.partial"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").touch()
    for file in (
        ".run.json.partial",
        ".log.jsonl.partial",
        ".report.html.partial",
        "mine.old",
        ".mine.partial",
    ):
        (tmp_path / file).touch()
    assert claim(tmp_path, "latest") == whole
    kept = [".lock", ".mine.partial", "best/file", "checkpoints/step_00000003/trainer_state.json", "mine.old"]
    assert sorted(contents(tmp_path)) == kept


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"cannot be written to"):
        claim(tmp_path / "file" / "run")


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    with claim_output_dir(tmp_path, None):
        for resume_from in (None, "latest"):
            with pytest.raises(FileExistsError, match=r"another run .*--output_dir"):
                claim(tmp_path, resume_from)
    assert claim(tmp_path, "latest") is None
