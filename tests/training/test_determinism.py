"""Runs that are repeated in a fresh process write the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Run, contents, differences, run_on_two

from ituning_hf.features.build import build_features
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import load_data
from ituning_hf.training.run import train

Settings = Callable[..., TrainArguments]

COMMON = {"adapter_dropout": 0.3, "max_train_steps": 4, "eval_steps": "2", "full_determinism": True}
WORKERS = {"dataloader_num_workers": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "pictures by workers, augmented": WORKERS | {"augmentation": "crop"},
    "bf16": {"mixed_precision": "bf16"},
    "int8, recomputed": {"frozen_precision": "int8", "gradient_checkpointing": True},
    "features": {"features": "features"},
    "2 processes": {"per_device_train_batch_size": 2},
    "2 processes, bf16, features": {"mixed_precision": "bf16", "features": "features"},
}


def test_full_determinism_changes_nothing_but_its_record_on_a_cpu(settings: Settings, tmp_path: Path):
    common = COMMON | {"augmentation": "crop", "mixed_precision": "bf16"}
    for name, value in (("one", True), ("plain", False)):
        train(settings(**common | {"full_determinism": value}, output_dir=str(tmp_path / name)))
    changed = differences(tmp_path / "one", tmp_path / "plain")
    assert len(contents(tmp_path / "one")) > 20
    assert {Path(name).name for name in changed} == {
        "README.md",
        "run.json",
        "trainer_state.json",
        "training.json",
    }


@pytest.mark.stress
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_writes_the_same_bytes_in_two_processes(
    settings: Settings, tmp_path: Path, form: str
):
    options = COMMON | FORMS[form]
    if "features" in options:
        data, options["features"] = load_data(settings()), str(tmp_path / "features")
        vision = settings().vision_model
        build_features([*data.train, *data.evaluation], tmp_path / "features", vision_model=vision)
    found = []
    for name in ("one", "two"):
        args = settings(**options, output_dir=str(tmp_path / name))
        runs = run_on_two(args, tmp_path) if form.startswith("2") else [Run(args, tmp_path / "output")]
        assert [run.end() for run in runs] == [0] * len(runs), [run.printed for run in runs]
        found.append(contents(args.output_dir))
    assert found[0] == found[1]
    assert len(found[0]) > 20
