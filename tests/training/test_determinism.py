"""Repeated runs write the same bytes, in fresh processes too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, run_on_two
from runs import Settings, command, differences
from small_models import contents, store_features

from ituning_hf.training.data import load_data
from ituning_hf.training.run import train

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


def test_on_a_cpu_full_determinism_changes_only_the_recorded_settings(settings: Settings, tmp_path: Path):
    common = COMMON | {"augmentation": "crop", "mixed_precision": "bf16"}
    for name, value in (("plain", False), ("one", True)):
        train(settings(name, **common | {"full_determinism": value}))
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    changed = {Path(name).name for name in differences(tmp_path / "one", tmp_path / "plain")}
    assert len(contents(tmp_path / "one")) > 20
    assert changed == {"README.md", "report.html", "run.json", "trainer_state.json", "training.json"}


@pytest.mark.stress
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_writes_the_same_bytes_in_a_fresh_process(
    settings: Settings, tmp_path: Path, form: str
):
    options = COMMON | FORMS[form]
    if "features" in options:
        data, options["features"] = load_data(settings()), str(tmp_path / "features")
        splits = [data.train, data.evaluation]
        store_features(tmp_path / "features", splits, vision_model=settings().vision_model)
    found = []
    for name in ("one", "two"):
        args = settings(name, **options)
        if form.startswith("2"):
            run_on_two(command(args), tmp_path)
        else:
            assert Command(command(args), tmp_path / "output").end() == 0
        found.append(contents(args.output_dir))
    assert found[0] == found[1]
    assert len(found[0]) > 20
