"""Two hosts train together without a common folder; a run may continue on another number of processes.

The hosts are simulated by processes that are each the first of its host, with paths of their own.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from processes import run_on_two
from runs import Settings, command, differences, losses
from safetensors.torch import load_file, save_file

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.run import train


def cut(run: Path, step: int) -> None:
    """Remove what a run wrote after a checkpoint, as if it had been killed then."""
    shutil.rmtree(run / "last")
    for folder in (run / "checkpoints").iterdir():
        if folder.name > f"step_{step:08d}":
            shutil.rmtree(folder)


def test_two_hosts_need_no_common_folder(settings: Settings, photos: Path, tmp_path: Path):
    common = {"max_train_steps": 4, "checkpointing_steps": "2", "adapter_dropout": 0.3}
    common |= {"per_device_train_batch_size": 2, "resume_from_checkpoint": "latest"}
    first = settings("first", **common)
    data = str(shutil.copytree(photos, tmp_path / "copy"))
    second = replace(first, dataset=data, output_dir=str(tmp_path / "second"))
    run_on_two(command(first), tmp_path, other_host=command(second))
    assert not (tmp_path / "second").exists()
    whole = Path(shutil.copytree(first.output_dir, tmp_path / "whole"))
    cut(Path(first.output_dir), 2)
    runs = run_on_two(command(second), tmp_path, exit_code=2, other_host=command(first))
    for run in runs:
        assert "Process 1 has step_00000002 in" in run.printed
        assert "has none: start process 0 on the other host" in run.printed
    assert not (tmp_path / "second").exists()
    run_on_two(command(first), tmp_path, other_host=command(second))
    assert differences(first.output_dir, whole) == []


def test_hosts_that_differ_are_refused_before_any_work(
    settings: Settings, photos: Path, backbones: dict[str, Path], tmp_path: Path
):
    first = settings("first", eval_split="none")
    data = shutil.copytree(photos, tmp_path / "copy")
    with (data / "train" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "0.png", "caption": "one caption more"}')
    text = shutil.copytree(backbones["text"], tmp_path / "text")
    weights = load_file(text / "model.safetensors")
    weights["transformer.ln_f.weight"] += 1
    save_file(weights, text / "model.safetensors", {"format": "pt"})
    second = replace(first, dataset=str(data), text_model=str(text), checkpointing_steps="9")
    for run in run_on_two(command(first), tmp_path, exit_code=2, other_host=command(second)):
        [message] = [line for line in run.printed.splitlines() if line.startswith("ituning: error")]
        assert "error: Process 0 on " in message
        for name in ("data_fingerprint", "text_model_fingerprint", "--checkpointing_steps 'epoch' and '9'"):
            assert name in message
        assert "vision_model" not in message
        assert message.endswith("Give all processes the same, and start them again.")
    assert not Path(first.output_dir).exists()


def test_an_error_of_one_host_is_shown_on_both(settings: Settings, tmp_path: Path):
    first = settings("first", eval_split="none")
    second = replace(first, text_model=str(tmp_path / "nowhere"))
    runs = run_on_two(command(first), tmp_path, exit_code=2, other_host=command(second))
    assert "ituning: error: process 1: " in runs[0].printed
    for run in runs:
        assert run.printed.count("nowhere") == 1
    assert not Path(first.output_dir).exists()


def test_a_run_continues_on_another_number_of_processes(settings: Settings, tmp_path: Path):
    common = {"max_train_steps": 6, "checkpointing_steps": "2", "max_checkpoints": 3, "learning_rate": 1e-3}
    one = settings("one", **common, per_device_train_batch_size=4)
    train(one)
    expected = losses(one)

    def continued(name: str, step: int, **changes: object) -> TrainArguments:
        shutil.copytree(one.output_dir, tmp_path / name)
        cut(tmp_path / name, step)
        return replace(one, output_dir=str(tmp_path / name), resume_from_checkpoint="latest", **changes)

    two = continued("two", 2, per_device_train_batch_size=2)
    run_on_two(command(two), tmp_path)
    record = json.loads((tmp_path / "two" / "last" / "training.json").read_text())
    assert record["num_processes"] == 2
    assert losses(two) == pytest.approx(expected, rel=1e-5)
    halves = continued("halves", 4, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    train(halves)
    assert losses(halves) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"it had global_batch_size 4, now 2\. .* x the number of processes"):
        train(continued("other", 2, per_device_train_batch_size=2))
