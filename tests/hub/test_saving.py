"""`save_captioner`: everything that belongs to a captioner, in one folder."""

import json
import os
from pathlib import Path

import pytest
import torch
from small_models import make_captioner

from ituning_hf import load_captioner, save_captioner
from ituning_hf.hub.evaluation_results import EvaluationResult, read_evaluations, write_evaluations


@pytest.fixture
def folder(captioner, processor, tmp_path: Path) -> Path:
    save_captioner(captioner, processor, tmp_path / "new" / "captioner")
    return tmp_path / "new" / "captioner"


def test_what_is_in_the_folder(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_file_ituning.py",
        "adapter_ituning.py",
        "backbones_ituning.py",
        "checkpoint_ituning.py",
        "config.json",
        "configuration_ituning.py",
        "fingerprint_ituning.py",
        "generation_config.json",
        "generation_file_ituning.py",
        "generation_ituning.py",
        "gpt2_ituning.py",
        "inputs_ituning.py",
        "json_ituning.py",
        "model.safetensors",
        "modeling_ituning.py",
        "output_ituning.py",
        "packing_ituning.py",
        "peft_ituning.py",
        "processing_ituning.py",
        "processor_config.json",
        "processor_files_ituning.py",
        "recorded_ituning.py",
        "requirements_ituning.py",
        "seal_ituning.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_are_as_readable_as_any_new_file(
    captioner, processor, tmp_path: Path, umask: int, mode: int
):
    before = os.umask(umask)
    try:
        save_captioner(captioner, processor, tmp_path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_facts_about_other_weights_are_removed(folder: Path, backbones, captioner, processor):
    result = EvaluationResult(
        dataset="x", split="test", num_images=3, metrics={"cider": 1.0}, command="ituning evaluate"
    )
    write_evaluations(folder, [result])
    save_captioner(captioner, processor, folder)
    assert read_evaluations(folder) == [result]
    assert "## Results" in (folder / "README.md").read_text()

    (folder / "training.json").write_text("of those weights")
    other = make_captioner(backbones, adapter_layers=[2])
    save_captioner(other, processor, folder)
    assert not (folder / "training.json").exists()
    assert not (folder / "evaluation.json").exists()
    model, _ = load_captioner(folder, device="cpu")
    assert model.config.adapter_layers == [2]
    assert "## Results" not in (folder / "README.md").read_text()


def test_saving_draws_nothing_from_the_random_generator(captioner, processor, tmp_path: Path):
    before = torch.get_rng_state()
    save_captioner(captioner, processor, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_card_that_a_person_wrote_stays(folder: Path, captioner, processor):
    (folder / "README.md").write_text("# Mine\n")
    save_captioner(captioner, processor, folder)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "ituning"
