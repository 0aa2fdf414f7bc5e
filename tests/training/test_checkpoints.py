"""Folders of a run: whole or not there, and nobody else's."""

import json
from pathlib import Path

import pytest

from ituning_hf.training.checkpoints import (
    STATE_FILE,
    atomic_folder,
    checkpoint_folder,
    claim_output_dir,
    find_checkpoint,
    list_checkpoints,
    release_output_dir,
    remove_old_checkpoints,
)


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as draft:
        (draft / "file").write_text(text)


def write_half(folder: Path) -> None:
    with atomic_folder(folder) as draft:
        (draft / "file").write_text("half")
        raise OSError("disk full")


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


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="latest: there is no checkpoint in"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(FileNotFoundError, match=r"elsewhere is no checkpoint: it has no trainer_state\.json"):
        find_checkpoint(tmp_path, str(tmp_path / "elsewhere"))


def test_another_runs_folder_is_refused_unless_it_is_resumed(tmp_path: Path):
    run, other = tmp_path / "run", checkpoint(tmp_path / "other", 5)
    claim_output_dir(run, None, {"seed": 7})
    with pytest.raises(FileExistsError, match="holds another run: give another folder"):
        claim_output_dir(run, None, {})
    with pytest.raises(FileNotFoundError, match="latest: there is no checkpoint in"):
        claim_output_dir(run, "latest", {})
    with pytest.raises(ValueError, match="lies outside --output_dir"):
        claim_output_dir(run, str(other), {})
    folder = checkpoint(run, 5)
    claim_output_dir(run, "latest", {})
    claim_output_dir(run, str(folder), {})
    assert json.loads((run / "run.json").read_text()) == {"settings": {"seed": 7}}


def test_a_run_that_failed_at_once_gives_its_folder_free(tmp_path: Path):
    claim_output_dir(tmp_path, None, {})
    release_output_dir(tmp_path)
    claim_output_dir(tmp_path, None, {})
    checkpoint(tmp_path, 5)
    release_output_dir(tmp_path)
    with pytest.raises(FileExistsError, match="holds another run"):
        claim_output_dir(tmp_path, None, {})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"cannot be written to .*: give a folder that can"):
        claim_output_dir(tmp_path / "file" / "run", None, {})
