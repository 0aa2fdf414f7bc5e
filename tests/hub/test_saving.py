"""`save_captioner` writes a complete captioner to one folder."""

import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from small_models import make_captioner

from ituning_hf import load_captioner, save_captioner
from ituning_hf.captioner import modeling_ituning
from ituning_hf.hub.records import read_evaluation_records, write_evaluation_records


def test_the_files_of_the_folder(captioner, processor, tmp_path: Path):
    state = torch.get_rng_state()
    save_captioner(captioner, processor, tmp_path / "new" / "captioner")
    assert torch.equal(torch.get_rng_state(), state)
    code = {path.name for path in Path(modeling_ituning.__file__).parent.glob("*_ituning.py")}
    assert {path.name for path in (tmp_path / "new" / "captioner").iterdir()} == code | {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_all_files_have_the_permissions_of_the_umask(
    captioner, processor, tmp_path: Path, umask: int, mode: int
):
    before = os.umask(umask)
    try:
        save_captioner(captioner, processor, tmp_path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_records_of_other_weights_are_removed(tmp_path: Path, backbones, captioner, processor, evaluations):
    folder = tmp_path / "captioner"
    save_captioner(captioner, processor, folder)
    write_evaluation_records(folder, evaluations)
    save_captioner(captioner, processor, folder)
    assert read_evaluation_records(folder) == evaluations
    assert "## Results" in (folder / "README.md").read_text()

    (folder / "training.json").write_text("of those weights")
    other = make_captioner(backbones, adapter_layers=[2])
    save_captioner(other, processor, folder)
    assert not (folder / "training.json").exists()
    assert not (folder / "evaluation.json").exists()
    model, _ = load_captioner(folder, device="cpu")
    assert model.config.adapter_layers == [2]
    assert "## Results" not in (folder / "README.md").read_text()


def test_a_captioner_with_a_peft_adapter_is_refused(captioner, processor, tmp_path: Path):
    captioner.add_adapter(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(ValueError, match=r"has a PEFT adapter.*model.save_pretrained\(folder\)"):
        save_captioner(captioner, processor, tmp_path / "captioner")
    assert not (tmp_path / "captioner").exists()
    captioner.delete_adapter("default")
    save_captioner(captioner, processor, tmp_path / "captioner")
    assert (tmp_path / "captioner/model.safetensors").exists()
