"""The size benchmark, on small models of the same classes."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_models import TEXT, VISION
from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "size.py"


@pytest.fixture(scope="module")
def size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["size"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_what_is_counted(size: ModuleType):
    text = GPT2Config(**TEXT, vocab_size=300, bos_token_id=1, eos_token_id=1)
    config = ITuningConfig(
        vision_config=CLIPVisionConfig(**VISION).to_dict(), text_config=text.to_dict(), adapter_num_heads=1
    )
    model = ITuningForCaptioning(config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = size.compare(config, torch.bfloat16)
    ours, theirs = sizes["I-Tuning"], sizes["VisionEncoderDecoder"]
    assert 2 * trainable <= ours.weights <= 2 * trainable + 6_000  # and a header
    assert ours.folder > ours.weights
    assert theirs.weights > 2 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert torch.get_default_dtype() == torch.float32
    assert config.text_config.add_cross_attention is False


def test_it_runs_small(size: ModuleType, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["size.py", "--small"])
    size.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["bfloat16", "I-Tuning", "VisionEncoderDecoder", "ratio"]
    assert float(lines[-1].split()[1]) > 2


def test_its_help():
    run = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "VisionEncoderDecoder over the same backbones" in run.stdout
