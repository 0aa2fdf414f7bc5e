"""Fixtures of the captioner's tests."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def saved(captioner, tmp_path: Path) -> Path:
    """The folder of a saved captioner."""
    captioner.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def own_backbones(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of the backbones that a test may modify."""
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in backbones.items()}
