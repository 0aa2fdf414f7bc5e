"""A dry run prints the step and the plan of the run, and writes nothing."""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Settings, checkpoints
from small_models import read_log

from ituning_hf.training.run import train


@pytest.fixture
def unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return a function; after its call no file may change until the test ends, temporary ones included."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    before: dict[Path, float] = {}

    def contents() -> dict[Path, float]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != temporary}

    yield lambda: before.update(contents())
    assert before
    assert contents() == before


def test_shapes_memory_and_plan(settings: Settings, capsys: pytest.CaptureFixture, unchanged):
    args = settings(dry_run=True, gradient_accumulation_steps=2, report_to=["tensorboard"])
    unchanged()
    assert train(args).step == 0
    text = capsys.readouterr().out
    assert text.startswith("Dry run: one optimizer step; nothing is written.\n")
    # 11 images of 1 and 2 captions in turn, two batches of 4 of them in a step, 3 for validation
    assert re.search(r"^Batch +pixel_values +\(4, 3, 30, 30\)  float32$", text, flags=re.MULTILINE)
    rows, length = re.search(r"^Batch +labels +\((\d+), (\d+)\)  int64$", text, flags=re.MULTILINE).groups()
    assert (int(rows), int(length) <= 24) == (8, True)
    step = r"^Step +2 x 1 x 4 \(batches x processes x images of a batch\), (\d+) label tokens$"
    assert 16 < int(re.search(step, text, flags=re.MULTILINE)[1]) <= 2 * 8 * 24
    assert "\nTrainable  6,556 of" in text
    assert "\nPlan       2 steps per epoch, 6 in all (3 epochs)\n" in text
    assert "\nValidate   3 times on 3 images\n" in text
    # 6,556 weights and two moments of each, 4 bytes each
    assert "\nCheckpoint 3 times, each about 78.7 kB; the newest 2 are kept\n" in text
    assert re.search(r"^Time +\d+\.\d\d s for this first step; ", text, flags=re.MULTILINE)
    size, unit = re.search(r"^Memory +([\d.]+) ([MG])i?B resident", text, flags=re.MULTILINE).groups()
    assert 100 < float(size) * {"M": 1, "G": 1024}[unit] < 20_000


def test_step_and_plan_are_the_runs_own_also_of_a_resumed_run(
    settings: Settings, capsys: pytest.CaptureFixture, unchanged
):
    args = settings(mixed_precision="bf16", max_train_steps=7, checkpointing_steps="2")
    train(replace(args, dry_run=True))
    text = capsys.readouterr().out
    train(args)
    losses = {entry["step"]: entry["loss"] for entry in read_log(args.output_dir) if "loss" in entry}
    assert f"\nLoss       {losses[1]:.4f}\n" in text
    assert "\nCheckpoint 4 times" in text
    assert checkpoints(args.output_dir) == ["step_00000006", "step_00000007"]
    older, newest = (Path(args.output_dir) / "checkpoints" / f"step_0000000{step}" for step in (6, 7))
    size = sum(path.stat().st_size for path in newest.iterdir())
    # besides the weights and moments: random states, the schedule, names
    assert 3 * 4 * 6556 < size < 3 * 4 * 6556 + 64 * 1024
    capsys.readouterr()
    unchanged()
    assert train(replace(args, dry_run=True, resume_from_checkpoint=str(older))).step == 6
    text = capsys.readouterr().out
    assert "\nResume     after step 6; 1 are left\n" in text
    assert "\nValidate   1 times on 3 images\n" in text
    assert "\nCheckpoint 1 times" in text
    assert f"\nLoss       {losses[7]:.4f}\n" in text
    with pytest.raises(ValueError, match="--seed 0, now 5"):
        train(replace(args, seed=5, dry_run=True, resume_from_checkpoint="latest"))


def test_a_dry_run_refuses_what_the_run_would_refuse(settings: Settings, tmp_path: Path, unchanged):
    args = settings(dry_run=True)
    (tmp_path / "a file").touch()
    unchanged()
    with pytest.raises(PermissionError, match=r"--output_dir .*a file/run cannot be written to"):
        train(replace(args, output_dir=str(tmp_path / "a file" / "run")))
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint elsewhere is not a checkpoint"):
        train(replace(args, resume_from_checkpoint="elsewhere"))
    # Before the first checkpoint, "latest" starts the run.
    assert train(replace(args, resume_from_checkpoint="latest")).step == 0
