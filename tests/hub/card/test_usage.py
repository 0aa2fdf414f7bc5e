"""The code that a card shows is run as it stands, but for the captioner's name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ituning_hf
from ituning_hf.hub.facts import PLACEHOLDER


@pytest.fixture
def blocks(saved: Path, tmp_path: Path) -> list[str]:
    """The card's Python code, beside a picture that it opens."""
    Image.new("RGB", (40, 37), "red").save(tmp_path / "dog.jpg")
    text = (saved / "README.md").read_text().replace(PLACEHOLDER, str(saved))
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_usage_code_runs(blocks: list[str], saved: Path, tmp_path: Path, monkeypatch, capsys):
    with_transformers, in_a_pipeline, with_the_package = blocks
    monkeypatch.chdir(tmp_path)
    exec(with_the_package, {})
    own = capsys.readouterr().out
    assert own.strip() == ituning_hf.caption(saved, "dog.jpg") != ""

    run = subprocess.run(
        [sys.executable, "-c", with_transformers + in_a_pipeline],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert [line.strip() for line in run.stdout.splitlines()] == [own.strip()] * 2
