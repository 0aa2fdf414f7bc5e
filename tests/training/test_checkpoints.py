"""Folders of a run: whole or not there, and nobody else's."""

from pathlib import Path

import pytest

from ituning_hf.training.checkpoints import (
    STATE_FILE,
    atomic_folder,
    checkpoint_folder,
    claim_output_dir,
    find_checkpoint,
    list_checkpoints,
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
    folder = checkpoint(tmp_path / "run", 5)
    with pytest.raises(FileExistsError, match="holds another run: give another folder"):
        claim_output_dir(tmp_path / "run", None)
    with pytest.raises(FileExistsError, match="holds another run"):
        claim_output_dir(tmp_path / "run", str(tmp_path / "other" / "checkpoints" / "step_00000005"))
    claim_output_dir(tmp_path / "run", "latest")
    claim_output_dir(tmp_path / "run", str(folder))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"cannot be written to .*: give a folder that can"):
        claim_output_dir(tmp_path / "file" / "run", None)
