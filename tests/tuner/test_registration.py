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
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

import ituning_hf.tuner
from ituning_hf.tuner import registration
from ituning_hf.tuner.config import ITuningTunerConfig
from ituning_hf.tuner.model import ITuningTuner


def registered() -> tuple:
    mappings = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    return tuple(mapping[PeftType.ITUNING] for mapping in mappings)


def test_peft_knows_the_method():
    assert registered() == (ITuningTunerConfig, ITuningTuner, "ituning_")
    assert (PeftType("ITUNING"), PeftType.ITUNING.name) == (PeftType.ITUNING, "ITUNING")
    assert ITuningTunerConfig(vision_hidden_size=3).peft_type is PeftType.ITUNING


def test_registering_again_does_nothing():
    before, members = registered(), list(PeftType)
    registration.register(ITuningTunerConfig, ITuningTuner)
    importlib.reload(registration)
    importlib.reload(ituning_hf.tuner)
    assert (registered(), list(PeftType)) == (before, members)


@pytest.mark.parametrize("hook", ["_get_adapter_state_dict", "_remove_adapter_name_from_key"])
def test_a_peft_that_would_save_other_keys_is_refused(monkeypatch, hook: str):
    """PEFT 0.20 takes the method, and loads what it saved as random weights."""
    monkeypatch.delitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.ITUNING)
    monkeypatch.delattr(BaseTuner, hook)
    with pytest.raises(ImportError, match=rf"does not accept .* no attribute '{hook}'.* peft 0\.21"):
        registration.register(ITuningTunerConfig, ITuningTuner)
    assert PeftType.ITUNING not in PEFT_TYPE_TO_TUNER_MAPPING


def test_a_method_of_that_name_from_elsewhere_is_not_overwritten(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.ITUNING, PeftConfig)
    message = r"already has a method 'ituning': .*PeftConfig"
    with pytest.raises(ImportError, match=message):
        registration.register(ITuningTunerConfig, ITuningTuner)


@pytest.mark.parametrize("broken", ["extend_enum", "register_peft_method"])
def test_a_peft_that_does_not_take_it_is_named(monkeypatch, broken: str):
    def fail(*args, **kwargs):
        raise TypeError("no such thing")

    monkeypatch.delitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.ITUNING)
    if broken == "extend_enum":
        monkeypatch.setattr(registration, "PEFT_TYPE", "NOT_A_MEMBER")
    monkeypatch.setattr(registration, broken, fail)
    message = r"peft \d\S* does not accept the method 'ituning' \(no such thing\).* peft 0\.21"
    with pytest.raises(ImportError, match=message):
        registration.register(ITuningTunerConfig, ITuningTuner)


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
