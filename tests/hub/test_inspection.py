"""What `describe` says of a saved captioner, against the captioner loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from small_models import edit_json, make_captioner

from ituning_hf import ITuningForCaptioning, __version__
from ituning_hf.cli.info import format_description
from ituning_hf.hub.inspection import describe, describe_config
from ituning_hf.hub.records import write_training_record
from ituning_hf.inference.loading import read_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def saved(backbones: dict[str, Path], tmp_path: Path) -> Path:
    model = make_captioner(backbones, adapter_layers=[1, 3], adapter_scale=0.5, adapter_dropout=0.25)
    model.generation_config.repetition_penalty = 1.2
    model.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


def test_the_numbers_are_the_loaded_models(saved):
    model = ITuningForCaptioning.from_pretrained(saved)
    description = describe(saved)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert description["parameters"] == {
        "trainable": trainable,
        "frozen": model.num_parameters() - trainable,
        "total": model.num_parameters(),
    }
    assert description["vision_model"]["parameters"] == model.vision_model.num_parameters()
    assert description["text_model"]["parameters"] == model.text_model.num_parameters() - trainable


def test_the_description(saved, backbones):
    edit_json(saved / "config.json", transformers_version="5.99.0")
    description = describe(saved)
    config = ITuningForCaptioning.from_pretrained(saved).config
    d, r, v = 22, 21, 15
    trainable = 2 * ((d + 1) * r + 2 * (v + 1) * r + (r + 1) * d)
    frozen = {kind: description[f"{kind}_model"]["parameters"] for kind in ("vision", "text")}
    parts = {
        "vision_model": {
            "name_or_path": str(backbones["vision"]),
            "revision": None,
            "fingerprint": config.vision_model_fingerprint,
            "model_type": "clip_vision_model",
            "num_layers": 2,
            "hidden_size": v,
            "parameters": frozen["vision"],
        },
        "text_model": {
            "name_or_path": str(backbones["text"]),
            "revision": None,
            "fingerprint": config.text_model_fingerprint,
            "model_type": "gpt2",
            "num_layers": 4,
            "hidden_size": d,
            "parameters": frozen["text"],
        },
        "adapter": {
            "hidden_size": r,
            "num_heads": 7,
            "layers": [1, 3],
            "scale": 0.5,
            "dropout": 0.25,
            "vision_feature_layer": -1,
            "vision_feature_norm": True,
            "parameters": trainable,
        },
        "parameters": {
            "trainable": trainable,
            "frozen": sum(frozen.values()),
            "total": sum(frozen.values()) + trainable,
        },
    }
    assert describe_config(config) == parts
    parts["adapter"] |= {"dtype": "float32", "bytes": (saved / "model.safetensors").stat().st_size}
    assert description == parts | {
        "name": str(saved),
        "model_type": "ituning",
        "format_version": 2,
        "versions": {
            "saved_with_transformers": "5.99.0",
            "ituning_hf": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "generation": {
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "max_new_tokens": 40,
            "repetition_penalty": 1.2,
        },
        "training": None,
        "commit": None,
        "files": {file.name: file.stat().st_size for file in saved.iterdir()},
    }
    assert list(description["files"]) == sorted(description["files"])
    assert json.loads(json.dumps(description)) == description


def test_default_generation_settings(saved):
    (saved / "generation_config.json").unlink()
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    assert describe(saved)["generation"] == tokens | {"max_new_tokens": 40}


def test_neither_backbones_nor_the_folders_code_are_touched(saved):
    expected = describe(saved)["parameters"]
    edit_json(
        saved / "config.json", vision_model_name_or_path="/gone/vision", text_model_name_or_path="/gone/text"
    )
    for file in saved.glob("*.py"):
        file.write_text("raise SystemExit('this code was run')")
    assert describe(saved)["parameters"] == expected


def test_the_text_for_people(saved, backbones):
    edit_json(saved / "config.json", text_model_revision=COMMIT)
    description = describe(saved)
    lines = format_description(description).splitlines()
    share = description["parameters"]["trainable"] / description["parameters"]["total"]
    for line in (
        f"captioner       {saved}",
        f"vision model    {backbones['vision']}",
        f"text model      {backbones['text']} at revision {COMMIT}",
        "adapter         in layers [1, 3] of 4, of width 21 with 7 heads",
        "                scale 0.5, dropout 0.25",
        f"parameters      3,278 trainable of {description['parameters']['total']:,} ({share:.2%})",
    ):
        assert line in lines
    edit_json(
        saved / "config.json", text_model_name_or_path="/gone/text", vision_model_name_or_path="org/clip"
    )
    lines = format_description(describe(saved)).splitlines()
    assert f"text model      /gone/text at revision {COMMIT} (not found)" in lines
    assert "vision model    org/clip" in lines


def test_a_captioner_of_the_hub(saved, tmp_path, monkeypatch):
    repository = tmp_path / "models--org--captioner"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert describe("org/captioner", revision="v2") == describe(saved) | {
        "name": "org/captioner",
        "commit": COMMIT,
    }
    assert read_config("org/captioner", "v2")[0] == repository / "snapshots" / COMMIT


def test_how_it_was_trained(saved, training):
    assert describe(saved)["training"] is None
    assert "trained on" not in format_description(describe(saved))
    write_training_record(saved, training)
    expected = json.loads((saved / "training.json").read_text())
    del expected["settings"], expected["versions"]
    assert describe(saved)["training"] == expected
    text = format_description(describe(saved))
    assert "trained on      org/photos:small: 29,000 images, 1,014 to validate\n" in text
    assert "                18,120 steps, epoch 10; loss on val 2.3457\n" in text
    write_training_record(saved, replace(training, eval_split=None, validation=None, dataset=None))
    text = format_description(describe(saved))
    assert "trained on      images given in Python: 29,000 images\n" in text
    assert "                18,120 steps, epoch 10\n" in text


def test_without_a_captioner(saved, backbones, tmp_path):
    with pytest.raises(OSError, match=r"no captioner at 'no/such': the folder does not exist, and as a Hub"):
        describe("no/such")
    with pytest.raises(OSError, match=r"no captioner at '/no/such': the folder does not exist\.$"):
        describe("/no/such")
    with pytest.raises(OSError, match=r"no config.json, but its subfolders \['captioner'\] do"):
        describe(saved.parent)
    with pytest.raises(ValueError, match="holds a model of type 'gpt2', expected 'ituning'"):
        describe(backbones["text"])
    (tmp_path / "peft").mkdir()
    messages = {
        "ITUNING": "convert it .* `ituning convert`",
        "LORA": r"method LORA: .*PeftModel.from_pretrained",
    }
    for method, message in messages.items():
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
        with pytest.raises(OSError, match=rf"the folder contains a PEFT adapter.*{message}"):
            describe(tmp_path / "peft")


def test_damaged_files(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        describe(saved)
    (saved / "config.json").write_text('{"model_type": "itu')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        describe(saved)
