"""Conversion of saved captioners to saved PEFT adapters, and back."""

import json
import pickle
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from small_models import LeavesAMark, contents, edit_json, make_captioner
from transformers import AutoModelForCausalLM

from ituning_hf import ITuningForCaptioning, save_captioner
from ituning_hf.cli import main
from ituning_hf.tuner.conversion import convert


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folders(request, tmp_path_factory, backbones, processor) -> dict[str, Path]:
    """A captioner, its conversion to an adapter, that adapter's to a captioner, and to an adapter again."""
    root = tmp_path_factory.mktemp(request.param)
    options = {"adapter_layers": [1, 3], "adapter_scale": 0.7, "vision_feature_layer": -2}
    captioner = make_captioner(backbones, vision_feature_norm=False, **options)
    for adapter in captioner.adapters().values():
        adapter.to(getattr(torch, request.param))
    names = ["captioner", "adapter", "captioner again", "adapter again"]
    save_captioner(captioner, processor, root / names[0])
    for source, output in pairwise(names):
        assert convert(root / source, root / output) == output.split()[0]
    return {name: root / name for name in names}


@pytest.mark.parametrize("kind", ["captioner", "adapter"])
def test_a_round_trip_gives_the_same_bytes(folders, kind: str):
    assert contents(folders[kind]) == contents(folders[f"{kind} again"])


def test_both_compute_the_same_logits(folders, pixel_values):
    captioner = ITuningForCaptioning.from_pretrained(folders["captioner"], dtype=torch.float32)
    adapter = AutoPeftModelForCausalLM.from_pretrained(folders["adapter"])  # raised to fp32 by PEFT
    ids = torch.randint(0, 200, (6, 5), generator=torch.Generator().manual_seed(1))
    features = captioner.get_image_features(pixel_values)
    logits = captioner(pixel_values=pixel_values, input_ids=ids).logits
    assert torch.equal(adapter.eval()(ids, visual_features=features).logits, logits)


def test_an_adapter_saved_before_the_norm_has_none(folders, tmp_path):
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    fields = json.loads((adapter / "adapter_config.json").read_text())
    assert fields.pop("vision_feature_norm") is False
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    convert(adapter, tmp_path / "captioner")
    assert contents(tmp_path / "captioner") == contents(folders["captioner"])


def test_the_code_of_the_adapters_card_runs(folders, backbones, pixel_values):
    card = (folders["adapter"] / "README.md").read_text()
    assert str(backbones["text"].parent) not in card
    assert "library_name: peft" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    captioner = ITuningForCaptioning.from_pretrained(folders["captioner"])
    names = {"features": captioner.get_image_features(pixel_values)}
    assert code is not None
    exec(code[1].replace("path/or/id", str(folders["adapter"])), names)  # our own text
    assert names["model"].peft_config["default"].vision_feature_layer == -2


def test_backbones_that_moved(folders, backbones, tmp_path):
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", vision_model_name_or_path=None, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"does not name its vision model.*--vision_model"):
        convert(adapter, tmp_path / "none")
    with pytest.raises(ValueError, match=r"does not name its text model.*--text_model"):
        convert(adapter, tmp_path / "none", vision_model=backbones["vision"])
    convert(adapter, tmp_path / "out", vision_model=backbones["clip"], text_model=backbones["text"])
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["vision_model_name_or_path"] == str(backbones["clip"])
    convert(folders["captioner"], tmp_path / "back", vision_model=backbones["clip"])
    made = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert made["vision_model_name_or_path"] == str(backbones["clip"])


def test_the_tokenizer_comes_from_the_recorded_commit(folders, backbones, tmp_path, monkeypatch):
    commit = "1" * 40  # the newest one need not be the same
    shutil.copytree(backbones["text"], tmp_path / "models--org--text" / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/text", revision=commit)
    convert(adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_model_revision"] == commit


def test_a_folder_with_files_is_refused(folders, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        convert(folders["captioner"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_other_models_and_adapters_are_refused(backbones, tmp_path):
    with pytest.raises(OSError, match="There is no captioner at"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="holds a model of type 'gpt2'"):
        convert(backbones["text"], tmp_path / "out")
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(backbones["text"]), LoraConfig(fan_in_fan_out=True)
    )
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"is an adapter of the method \S*LORA, expected ITUNING"):
        convert(tmp_path / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "OTHER"}', '{"peft_type": "ITUNING"}'], ids=repr)
def test_a_damaged_configuration_is_named(tmp_path, text: str, capsys):
    (tmp_path / "adapter_config.json").write_text(text)
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert f"The adapter_config.json of {str(tmp_path)!r} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layers", "message"), [([1, 2, 3], r"8 missing .*h\.2\."), ([1], r"8 unexpected .*h\.3\.")]
)
def test_missing_and_unexpected_weights_are_refused(folders, tmp_path, layers: list[int], message: str):
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", adapter_layers=layers)
    with pytest.raises(ValueError, match=message):
        convert(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_not_opened(folders, tmp_path):
    adapter = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    with (adapter / "adapter_model.bin").open("wb") as file:
        pickle.dump(LeavesAMark(tmp_path / "mark"), file)
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        convert(adapter, tmp_path / "out")
    assert not (tmp_path / "mark").exists()


def test_the_command(folders, tmp_path, capsys):
    adapter, captioner = str(tmp_path / "adapter"), str(tmp_path / "captioner")
    assert main(["convert", str(folders["captioner"]), adapter]) == 0
    assert main(["convert", adapter, captioner]) == 0
    assert capsys.readouterr().out == f"wrote a PEFT adapter to {adapter}\nwrote a captioner to {captioner}\n"
    weights = "model.safetensors"
    assert Path(captioner, weights).read_bytes() == (folders["captioner"] / weights).read_bytes()
    assert main(["convert", adapter, captioner]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
