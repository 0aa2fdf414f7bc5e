"""Two processes find what one finds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf.evaluation.arguments import EvaluateArguments
from ituning_hf.evaluation.run import evaluate_captioner

from .conftest import flags, read_json

Settings = Callable[..., EvaluateArguments]
TWO = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "ituning_hf.cli"]


def run(command: list[str], folder: Path) -> str:
    """Run a command of this environment elsewhere, and return what it printed, errors last."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    program = str(Path(sys.executable).parent / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("batch_size", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_two_processes_find_what_one_finds(settings: Settings, photos: Path, tmp_path: Path, batch_size: int):
    """Of four batches each process has two, one of them short; of a single batch one process has none."""
    (photos / "test" / "2.png").write_bytes(b"not a picture")
    common = {"batch_size": batch_size, "max_unreadable_share": 0.2}
    evaluation = evaluate_captioner(settings(**common, output_dir=str(tmp_path / "one"), no_card=True))
    two = settings(**common, output_dir=str(tmp_path / "two"))
    printed = run([*TWO, "evaluate", *flags(two)], tmp_path)
    assert printed.count("photos, test: 6 images") == 1  # the main process's alone
    assert printed.count("left out: cannot read") == 1
    for name in ("results.json", "per_image.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    ours, theirs = (read_json(tmp_path / name / "metrics.json") for name in ("one", "two"))
    assert theirs["speed"]["num_processes"] == 2
    assert theirs["metrics"] == ours["metrics"]
    assert len(list((tmp_path / "two").iterdir())) == 3
    if batch_size == 2:
        again = run([*TWO, "evaluate", *flags(two)], tmp_path)
        assert again.count("This evaluation is complete") == again.count("photos, test: 6 images") == 1
    assert [
        result["image_id"] for result in read_json(tmp_path / "two" / "results.json")
    ] == evaluation.places
