"""Runs that are repeated in a fresh process write the same bytes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runner import Run, contents, run_by_two

from ituning_hf.features.build import build_features
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.setup import load_data
from ituning_hf.utils.determinism import full_determinism

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


def run_alone(args: TrainArguments) -> dict[str, bytes]:
    run = Run(args)
    assert run.end() == 0, run.printed
    return contents(args.output_dir)


def run_on_two(args: TrainArguments) -> dict[str, bytes]:
    runs = run_by_two(args)
    assert [run.end() for run in runs] == [0, 0], [run.printed for run in runs]
    assert json.loads((Path(args.output_dir) / "run.json").read_text())["num_processes"] == 2
    return contents(args.output_dir)


def test_two_fresh_processes_write_the_same_bytes(settings: Settings, tmp_path: Path):
    common = COMMON | FORMS["pictures by workers, augmented"] | FORMS["bf16"]
    one, two = (run_alone(settings(**common, output_dir=str(tmp_path / name))) for name in ("one", "two"))
    assert one == two
    assert len(one) > 20
    # On a CPU the mode changes no number: only the files that tell of it differ.
    plain = run_alone(settings(**common | {"full_determinism": False}, output_dir=str(tmp_path / "plain")))
    assert plain.keys() == one.keys()
    told = {name for name in one if one[name] != plain[name]}
    # The captioner's card is the README.
    assert {Path(name).name for name in told} == {
        "README.md",
        "run.json",
        "trainer_state.json",
        "training.json",
    }
    assert all(b"full_determinism" in one[name] for name in told)


def test_the_mode_ends_with_its_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delenv("OF_SOMEBODY_ELSE", raising=False)
    before = dict(os.environ), torch.backends.cudnn.benchmark
    with full_determinism(True, seed=3):
        os.environ["OF_SOMEBODY_ELSE"] = "set meanwhile"
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert "CUBLAS_WORKSPACE_CONFIG" in os.environ
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert os.environ.pop("OF_SOMEBODY_ELSE") == "set meanwhile"
    assert (dict(os.environ), torch.backends.cudnn.benchmark) == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with full_determinism(True, seed=3):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with full_determinism(False, seed=3):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.stress
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_writes_the_same_bytes_twice(settings: Settings, tmp_path: Path, form: str):
    options = COMMON | FORMS[form]
    if "features" in options:
        data, options["features"] = load_data(settings()), str(tmp_path / "features")
        vision = settings().vision_model
        build_features([*data.train, *data.evaluation], tmp_path / "features", vision_model=vision)
    run = run_on_two if form.startswith("2") else run_alone
    one, two = (run(settings(**options, output_dir=str(tmp_path / name))) for name in ("one", "two"))
    assert one == two
    assert len(one) > 20
