"""Registration of the method with PEFT."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import run_fresh
from methods import IMAGES, ITUNING, ROWS
from peft import AutoPeftModel, LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from small_models import logits_of

from ituning_hf import ITuningForCaptioning
from ituning_hf.tuner.config import ITuningTunerConfig
from ituning_hf.tuner.model import ITuningTuner


def test_peft_knows_the_method():
    mappings = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    registered = [mapping[PeftType.ITUNING] for mapping in mappings]
    assert registered == [ITuningTunerConfig, ITuningTuner, "ituning_"]
    assert (PeftType("ITUNING"), PeftType.ITUNING.name) == (PeftType.ITUNING, "ITUNING")
    assert ITuningTunerConfig(vision_hidden_size=3).peft_type is PeftType.ITUNING


FRESH = """
import json, warnings
sys.modules["bitsandbytes"] = None  # optional, and slow to import
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftConfig
ituning, lora, rows, image = *sys.argv[1:3], json.loads(sys.argv[3]), json.loads(sys.argv[4])
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")
found = {}
try:
    AutoPeftModelForCausalLM.from_pretrained(ituning, import_allowlist=["ituning_hf"])
except KeyError as error:
    found["unknown"] = str(error)
try:
    AutoPeftModel.from_pretrained(lora)
except ValueError as error:
    found["not allowed"] = str(error)
found["before"] = "ituning_hf" in sys.modules
model = AutoPeftModel.from_pretrained(lora, import_allowlist=["ituning_hf"])
found["class"] = type(model.get_base_model()).__name__
found["sum"] = sum(p.double().sum().item() for p in model.parameters())
found["config"] = type(PeftConfig.from_pretrained(ituning)).__name__
warnings.simplefilter("ignore")
model = AutoPeftModelForCausalLM.from_pretrained(ituning)
with torch.no_grad():
    logits = model(input_ids=torch.tensor(rows), visual_features=torch.tensor(image)).logits
found["logits"] = logits.tolist()
"""


def test_importing_the_package_registers_the_method(gpt2, captioner, tmp_path: Path):
    """PEFT imports it for a LoRA over a captioner, if it is on the allowlist."""
    model = ITUNING.wrap(gpt2)
    model.save_pretrained(tmp_path / "ituning")
    captioner.save_pretrained(tmp_path / "captioner")
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    over_captioner = get_peft_model(ITuningForCaptioning.from_pretrained(tmp_path / "captioner"), lora)
    over_captioner.save_pretrained(tmp_path / "lora")
    inputs = (json.dumps(ROWS.tolist()), json.dumps(IMAGES.tolist()))
    found = run_fresh(FRESH, tmp_path, tmp_path / "ituning", tmp_path / "lora", *inputs, hide=False)
    # PEFT's message, which docs/peft.md explains; the allowlist is for the language model's class.
    assert found["unknown"] == "'ITUNING'"
    assert "wants to import 'ituning_hf.captioner.modeling_ituning'" in found["not allowed"]
    assert (found["before"], found["class"]) == (False, "ITuningForCaptioning")
    assert found["sum"] == pytest.approx(sum(p.double().sum().item() for p in over_captioner.parameters()))
    assert found["config"] == "ITuningTunerConfig"
    assert torch.equal(torch.tensor(found["logits"]), ITUNING.logits(model))
    here = AutoPeftModel.from_pretrained(tmp_path / "lora", import_allowlist=["ituning_hf"])
    assert torch.equal(logits_of(here), logits_of(over_captioner.eval()))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "captioner")


def test_an_adapter_without_a_task_type_loads_with_auto_peft_model(gpt2, tmp_path: Path):
    model = ITUNING.wrap(gpt2, task_type=None)
    model.save_pretrained(tmp_path)
    assert torch.equal(ITUNING.logits(AutoPeftModel.from_pretrained(tmp_path)), ITUNING.logits(model))


def test_from_peft_names_the_packages_it_requires(captioner, monkeypatch):
    monkeypatch.setitem(sys.modules, "ituning_hf.tuner.conversion", None)  # its import fails without PEFT
    with pytest.raises(ImportError, match="from_peft requires the packages ituning_hf and peft"):
        ITuningForCaptioning.from_peft(captioner, "nowhere")
