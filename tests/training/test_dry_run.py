"""A dry run says in numbers what the run would do, by the run's own code, and leaves nothing behind."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.training.dry_run import count_due
from ituning_hf.training.memory import format_bytes
from ituning_hf.training.setup import describe_steps

Settings = Callable[..., TrainArguments]


@pytest.fixture
def nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that says whether there is any other file than before, temporary ones included."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)

    def contents() -> dict[Path, float]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != temporary}

    before: dict[Path, float] = {}

    def check(start: bool = False) -> bool:
        if start:
            before.update(contents())
        return contents() == before

    check(start=True)
    return check


def said(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """Return what a line of the last dry run said."""
    found = re.findall(rf"^{name} +(.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(found) == 1, found
    return found[0]


def test_it_says_what_the_run_would_do(settings: Settings, capsys, nothing_written):
    state = train(settings(dry_run=True, gradient_accumulation_steps=2, report_to=["tensorboard"]))
    assert state.step == 0
    assert nothing_written()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dry run: one optimizer step; nothing is written."
    text = "\n".join(lines)
    # 11 images of 1 and 2 captions in turn, two batches of 4 of them in a step, 3 for validation
    assert re.search(r"^Batch +pixel_values +\(4, 3, 30, 30\)  float32$", text, flags=re.MULTILINE)
    rows, length = re.search(r"^ +labels +\((\d+), (\d+)\)  int64$", text, flags=re.MULTILINE).groups()
    assert (int(rows), int(length) <= 24) == (8, True)
    images, captions, tokens = re.search(r"Step +(\d+) images, (\d+) captions, (\d+) label", text).groups()
    assert (int(images), int(captions) in range(8, 17), int(tokens) > 8) == (8, True, True)
    assert "\n           2 x 1 x 4 (batches x processes x images of a batch)\n" in text
    assert "\nTrainable  6,556 of" in text
    assert "\nPlan       2 steps in an epoch, 6 in all (3 epochs)\n" in text
    assert "\nValidate   3 times on 3 images, and once before training\n" in text
    # 6,556 weights and two moments of each, 4 bytes all of them
    assert "\nCheckpoint 3 times, each about 76.83 KiB; the newest 2 are kept\n" in text
    assert re.search(r"^Time +\d+\.\d\d s for this first step, without warm-up; ", text, flags=re.MULTILINE)
    size, unit = re.search(r"^Memory +([\d.]+) (MiB|GiB) resident", text, flags=re.MULTILINE).groups()
    assert 100 < float(size) * {"MiB": 1, "GiB": 1024}[unit] < 20_000


def test_its_step_is_the_runs_first(settings: Settings, capsys, tmp_path: Path):
    train(settings(dry_run=True, mixed_precision="bf16"))
    loss = said(capsys, "Loss")
    args = settings(mixed_precision="bf16", max_train_steps=1)
    train(args)
    records = [json.loads(line) for line in (Path(args.output_dir) / "log.jsonl").read_text().splitlines()]
    assert [f"{record['loss']:.4f}" for record in records if "loss" in record] == [loss]


def test_the_plan_is_what_the_run_does(settings: Settings, capsys):
    changes = {"max_train_steps": 7, "checkpointing_steps": "3"}
    train(settings(dry_run=True, **changes))
    assert said(capsys, "Checkpoint").startswith("3 times")
    args = settings(**changes)
    train(args)
    folders = sorted((Path(args.output_dir) / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step_00000006", "step_00000007"]
    size = sum(path.stat().st_size for path in folders[-1].iterdir())
    # beside the weights and moments: random states, the schedule, names
    assert 3 * 4 * 6556 < size < 3 * 4 * 6556 + 64 * 1024


def test_another_run_in_the_folder_is_reported_and_left_alone(settings: Settings, capsys, nothing_written):
    args = settings(dry_run=True)
    out = Path(args.output_dir)
    (out / "last").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    nothing_written(start=True)
    with pytest.raises(FileExistsError, match="holds another run: give another folder"):
        train(args)
    assert said(capsys, "Output") == str(out)  # what it was asked for comes first
    assert nothing_written()


def test_a_folder_that_cannot_be_made_is_refused(settings: Settings, tmp_path: Path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(PermissionError, match=r"--output_dir .*a file/run cannot be written to: give"):
        train(settings(dry_run=True, output_dir=str(tmp_path / "a file" / "run")))


def test_a_resumed_run_says_where_it_goes_on(settings: Settings, capsys, nothing_written):
    changes = {"max_train_steps": 7, "checkpointing_steps": "4", "max_checkpoints": 2}
    args = settings(**changes)
    train(args)
    last = Path(args.output_dir) / "checkpoints" / "step_00000004"
    losses = [json.loads(line) for line in (Path(args.output_dir) / "log.jsonl").read_text().splitlines()]
    nothing_written(start=True)
    capsys.readouterr()
    state = train(settings(**changes, dry_run=True, resume_from_checkpoint=str(last)))
    assert nothing_written()
    assert state.step == 4
    text = capsys.readouterr().out
    assert "\nResume     after step 4; 3 are left\n" in text
    assert "\nValidate   2 times on 3 images\n" in text  # after steps 6 and 7
    assert "\nCheckpoint 1 times" in text
    fifth = next(record["loss"] for record in losses if record["step"] == 5 and "loss" in record)
    assert f"\nLoss       {fifth:.4f}\n" in text


def test_a_checkpoint_of_other_settings_is_refused(settings: Settings):
    train(settings(max_train_steps=2))
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        train(settings(max_train_steps=2, seed=5, dry_run=True, resume_from_checkpoint="latest"))


def test_before_the_first_checkpoint_it_begins_where_the_run_would(settings: Settings, nothing_written):
    assert train(settings(dry_run=True, resume_from_checkpoint="latest")).step == 0
    assert nothing_written()


def test_a_checkpoint_that_is_not_there_is_named(settings: Settings, nothing_written):
    with pytest.raises(FileNotFoundError, match="--resume_from_checkpoint elsewhere is no checkpoint"):
        train(settings(dry_run=True, resume_from_checkpoint="elsewhere"))
    assert nothing_written()


def test_without_backbones_it_takes_untrained_small_ones(
    photos: Path, capsys, nothing_written, tmp_path: Path
):
    out = str(tmp_path / "run")
    train(TrainArguments(dataset=str(photos), output_dir=out, dataloader_num_workers=0, dry_run=True))
    assert nothing_written()
    text = capsys.readouterr().out
    assert "\nBackbones  small ones, untrained here; the run would train them first\n" in text
    assert "\nTrainable  132,352 of" in text
    assert "steps ..." not in text


def test_two_processes_print_once(photos: Path, tmp_path: Path):
    """Without backbones, since of several processes only one can save those it makes."""
    args = TrainArguments(
        dataset=str(photos),
        captions_per_image=2,
        per_device_train_batch_size=4,
        dataloader_num_workers=0,
        output_dir=str(tmp_path / "run"),
        dry_run=True,
    )
    (tmp_path / "run.yaml").write_text(json.dumps(args.to_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "ituning_hf.cli", "train", "--config", "run.yaml"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Dry run:") == 1
    assert "\nStep       8 images, " in done.stdout
    assert "\n           1 x 2 x 4 (batches x processes x images of a batch)\n" in done.stdout
    assert not Path(args.output_dir).exists()


@pytest.mark.parametrize(
    ("every", "start", "total", "expected"),
    [
        ("epoch", 0, 9, 3),
        ("epoch", 0, 8, 2),
        ("epoch", 4, 9, 2),
        ("3", 0, 7, 3),
        ("3", 6, 7, 1),
        ("100", 0, 7, 1),
        ("1", 0, 7, 7),
        ("3", 7, 7, 0),
    ],
)
def test_how_often_something_falls_due(every: str, start: int, total: int, expected: int):
    """Steps of the loop, counted: each that `every` divides, and the last."""
    steps = 4 if every == "epoch" else int(every)
    counted = sum(step % steps == 0 or step == total for step in range(start + 1, total + 1))
    assert count_due(every, start, total, steps_per_epoch=4) == counted == expected


def test_bytes_are_shown_in_the_unit_that_suits_them():
    assert [format_bytes(count) for count in (512, 78_672, 5 * 2**20, 3 * 2**40)] == [
        "512 bytes",
        "76.83 KiB",
        "5 MiB",
        "3072 GiB",
    ]


def test_a_run_of_few_steps_is_warned_of():
    assert describe_steps(100) == []
    assert describe_steps(99) == [
        "Few steps  99 in all: captions may not learn where to end; train more epochs, or in smaller batches"
    ]
