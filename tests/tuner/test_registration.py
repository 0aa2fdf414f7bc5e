"""Registration of the method with PEFT."""

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from methods import IMAGES, ITUNING, ROWS
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from ituning_hf.tuner import registration
from ituning_hf.tuner.config import ITuningTunerConfig
from ituning_hf.tuner.model import ITuningTuner


def test_peft_knows_the_method():
    registration.register(ITuningTunerConfig, ITuningTuner)  # a second time, which does nothing
    mappings = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    registered = [mapping[PeftType.ITUNING] for mapping in mappings]
    assert registered == [ITuningTunerConfig, ITuningTuner, "ituning_"]
    assert (PeftType("ITUNING"), PeftType.ITUNING.name) == (PeftType.ITUNING, "ITUNING")
    assert ITuningTunerConfig(vision_hidden_size=3).peft_type is PeftType.ITUNING


@pytest.mark.parametrize("name", ["config", "conversion", "model"])
def test_docstring_examples_run(name: str):
    results = doctest.testmod(importlib.import_module(f"ituning_hf.tuner.{name}"))
    assert (results.failed, results.attempted > 0) == (0, True)


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FRESH = """
import json, sys, warnings
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
folder, rows, image = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
try:
    PeftConfig.from_pretrained(folder)
except KeyError as error:
    print(error)
import ituning_hf
print(type(PeftConfig.from_pretrained(folder)).__name__)
warnings.simplefilter("ignore")
model = AutoPeftModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    logits = model(input_ids=torch.tensor(rows), encoder_hidden_states=torch.tensor(image)).logits
print(json.dumps(logits.tolist()))
"""


def test_in_a_fresh_process_the_import_is_enough_and_needed(gpt2, tmp_path: Path):
    model = ITUNING.wrap(gpt2)
    model.save_pretrained(tmp_path)
    inputs = (json.dumps(ROWS.tolist()), json.dumps(IMAGES.tolist()))
    without, config, logits = run(FRESH, str(tmp_path), *inputs).splitlines()
    assert without == "'ITUNING'"  # all that PEFT says: the README tells what to import
    assert config == "ITuningTunerConfig"
    assert torch.equal(torch.tensor(json.loads(logits)), ITUNING.logits(model))


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
from ituning_hf import ITuningForCaptioning
model = ITuningForCaptioning.from_pretrained(sys.argv[1])
try:
    ITuningForCaptioning.from_peft(model, "nowhere")
except ImportError as error:
    print(error)
"""


def test_without_peft_the_captioner_works_and_says_what_is_missing(captioner, tmp_path: Path):
    captioner.save_pretrained(tmp_path)
    assert run(WITHOUT_PEFT, str(tmp_path)).startswith("from_peft needs")
