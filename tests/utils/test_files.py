"""Atomic writes: after a failure the file has its earlier content."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ituning_hf.utils.files import draft_of, exclusive_lock, require_writable, write_json

FULL_DEVICE = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with earlier content."""
    write_json(tmp_path / "record.json", {"step": 1})
    return tmp_path / "record.json"


@pytest.fixture
def read_only(path: Path) -> Iterator[Path]:
    path.parent.chmod(0o500)
    if os.access(path.parent, os.W_OK):
        pytest.skip("the superuser can write to every folder")
    yield path.parent
    path.parent.chmod(0o700)


def test_a_write_replaces_the_file_and_leaves_no_draft(path: Path):
    write_json(path, {"step": 2})
    assert path.read_text() == '{\n  "step": 2\n}\n'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="this system has no /dev/full")
def test_a_full_disk_leaves_the_earlier_file(path: Path):
    draft_of(path).symlink_to(FULL_DEVICE)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_json(path, {"step": 2})
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == '{\n  "step": 1\n}\n'


def test_a_read_only_folder_is_refused(path: Path, read_only: Path):
    with pytest.raises(PermissionError):
        write_json(path, {"step": 2})
    with pytest.raises(PermissionError, match=r"--output_dir .* cannot be written to"):
        require_writable(read_only / "run")
    with pytest.raises(PermissionError, match="cannot be written to"), exclusive_lock(read_only, "it", "run"):
        pass
    assert path.read_text() == '{\n  "step": 1\n}\n'
