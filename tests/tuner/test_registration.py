"""Registration of the method with PEFT."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import run_fresh
from methods import IMAGES, ITUNING, ROWS
from peft import AutoPeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

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
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
folder, rows, image = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
try:
    AutoPeftModelForCausalLM.from_pretrained(folder, import_allowlist=["ituning_hf"])
except KeyError as error:
    found["error"] = str(error)
import ituning_hf
found["config"] = type(PeftConfig.from_pretrained(folder)).__name__
warnings.simplefilter("ignore")
model = AutoPeftModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    logits = model(input_ids=torch.tensor(rows), encoder_hidden_states=torch.tensor(image)).logits
found["logits"] = logits.tolist()
"""


def test_importing_the_package_registers_the_method(gpt2, tmp_path: Path):
    model = ITUNING.wrap(gpt2)
    model.save_pretrained(tmp_path)
    inputs = (json.dumps(ROWS.tolist()), json.dumps(IMAGES.tolist()))
    found = run_fresh(FRESH, tmp_path, tmp_path, *inputs, hide=False)
    # PEFT's message, which docs/peft.md explains; the allowlist is for the language model's class.
    assert found["error"] == "'ITUNING'"
    assert found["config"] == "ITuningTunerConfig"
    assert torch.equal(torch.tensor(found["logits"]), ITUNING.logits(model))


def test_an_adapter_without_a_task_type_loads_with_auto_peft_model(gpt2, tmp_path: Path):
    model = ITUNING.wrap(gpt2, task_type=None)
    model.save_pretrained(tmp_path)
    assert torch.equal(ITUNING.logits(AutoPeftModel.from_pretrained(tmp_path)), ITUNING.logits(model))


def test_from_peft_names_the_packages_it_requires(captioner, monkeypatch):
    monkeypatch.setitem(sys.modules, "ituning_hf.tuner.conversion", None)  # its import fails without PEFT
    with pytest.raises(ImportError, match="from_peft requires the packages ituning_hf and peft"):
        ITuningForCaptioning.from_peft(captioner, "nowhere")
