"""Loading a captioner runs no code and reads no files but its own, whatever its files say."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import ADAPTER, LeavesAMark, edit_json
from transformers import AutoModel, AutoProcessor, dynamic_module_utils

from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.hub.inspection import describe

CODE = """
from pathlib import Path
from transformers import {base}

Path({mark!r}).touch()


class Custom({base}):
    pass
"""
AUTO_CLASSES = [
    *("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor"),
    "AutoTokenizer",
]
SETTINGS = ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"]
LOADERS: list[Callable] = [ITuningForCaptioning.from_pretrained, load_captioner, describe]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once forbidden code has run."""
    return tmp_path / "mark"


@pytest.fixture
def own_backbones(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(backbones[name], tmp_path / name)) for name in ("vision", "text")}


@pytest.fixture
def folder(saved_captioner: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_captioner, tmp_path / "captioner"))


def request_code(folder: Path, base: str, name: str, mark: Path) -> None:
    """Let every settings file in a folder name a class that leaves the mark."""
    (folder / "custom.py").write_text(CODE.format(base=base, mark=str(mark)))
    for file in SETTINGS:
        if (folder / file).is_file():
            edit_json(folder / file, auto_map=dict.fromkeys(AUTO_CLASSES, name))


def test_the_code_of_backbones_does_not_run(folder, own_backbones, remote_class, mark):
    request_code(own_backbones["vision"], "CLIPVisionModel", "custom.Custom", mark)
    request_code(own_backbones["text"], "GPT2LMHeadModel", "custom.Custom", mark)
    paths = own_backbones["vision"], own_backbones["text"]
    names = {f"{part}_model_name_or_path": path for part, path in own_backbones.items()}
    for cls in (ITuningForCaptioning, AutoModel, remote_class):
        cls.from_pretrained(folder, trust_remote_code=True, **names)
    ITuningForCaptioning.from_vision_text_pretrained(*paths, **ADAPTER)
    ITuningProcessor.from_vision_text_pretrained(*paths)
    assert not mark.exists()
    dynamic_module_utils.get_class_from_dynamic_module("custom.Custom", str(paths[1]))
    assert mark.exists()  # so the code would have left it


@pytest.mark.parametrize("name", ["other/repo--custom.Custom", "custom.Custom", "../custom.Custom"])
def test_code_named_in_a_captioners_settings_does_not_run(folder, mark, name: str):
    request_code(folder, "PreTrainedModel", name, mark)
    ITuningForCaptioning.from_pretrained(folder)
    ITuningForCaptioning.from_pretrained(folder, trust_remote_code=True)
    ITuningProcessor.from_pretrained(folder)
    load_captioner(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.safetensors"])
@pytest.mark.parametrize("load", LOADERS)
def test_a_pickled_adapter_is_refused_and_not_unpickled(folder, mark, name: str, load: Callable):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(LeavesAMark(mark)))
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        load(folder)
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_pickled_backbone_runs_no_code(folder, own_backbones, mark, part: str):
    (own_backbones[part] / "model.safetensors").unlink()
    torch.save({"wte.weight": LeavesAMark(mark)}, own_backbones[part] / "pytorch_model.bin")
    with pytest.raises(CaptionerError, match="Weights only load failed"):
        load_captioner(folder, **{f"{part}_model": own_backbones[part]})
    with pytest.raises(CaptionerError, match="Weights only load failed"):
        ITuningForCaptioning.from_vision_text_pretrained(own_backbones["vision"], own_backbones["text"])
    assert not mark.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_tokenizer_files": ["../outside/tokenizer.4.0.json"]},
        {"gguf_file": "../outside/model.gguf"},
        {"vocab": "../outside/vocab.json", "merges": "../outside/merges.txt"},
    ],
)
@pytest.mark.parametrize("load", [ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_a_tokenizer_with_files_elsewhere_is_refused(folder, load: Callable, settings: dict):
    edit_json(folder / "tokenizer_config.json", **settings)
    with pytest.raises(CaptionerError, match=f"{next(iter(settings))}.*refer to other files"):
        load(folder)


@pytest.mark.parametrize("name", ["AutoModel", "custom.Custom"])
@pytest.mark.parametrize("load", [ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_the_settings_of_the_image_processor_cannot_name_another_class(folder, load: Callable, name: str):
    edit_json(folder / "processor_config.json", image_processor={"image_processor_type": name})
    with pytest.raises(CaptionerError, match=f"image_processor_type is '{name}', but Transformers has no"):
        load(folder)


@pytest.mark.parametrize("field", ["vocab_file", "merges_file", "tokenizer_file", "name_or_path"])
def test_other_paths_in_tokenizer_settings_are_ignored(folder, processor, field: str, tmp_path: Path):
    (tmp_path / "outside.json").write_text("{")
    edit_json(folder / "tokenizer_config.json", **{field: str(tmp_path / "outside.json")})
    for load in (ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained):
        assert load(folder).tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_the_configuration_cannot_name_another_adapter_file(folder, tmp_path: Path):
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    names = ("transformers_weights", "_name_or_path", "name_or_path", "subfolder", "weights")
    edit_json(folder / "config.json", **dict.fromkeys(names, "../model.safetensors"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        ITuningForCaptioning.from_pretrained(folder)


def test_the_configuration_cannot_name_a_kernel(folder):
    stored = json.loads((folder / "config.json").read_text())
    names = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    kernel = dict.fromkeys(names, "other/kernel")
    parts = {part: stored[part] | kernel for part in ("vision_config", "text_config")}
    edit_json(folder / "config.json", **kernel, **parts)
    describe(folder)
    for cls in (ITuningForCaptioning, AutoModel):
        assert cls.from_pretrained(folder).text_model.config._attn_implementation == "sdpa"
        model = cls.from_pretrained(folder, attn_implementation="eager")
        assert model.text_model.config._attn_implementation == "eager"


def test_the_configuration_of_a_backbone_cannot_name_a_kernel(folder, own_backbones):
    edit_json(own_backbones["text"] / "config.json", attn_implementation="other/kernel")
    model = ITuningForCaptioning.from_pretrained(folder, text_model_name_or_path=own_backbones["text"])
    assert model.text_model.config._attn_implementation == "sdpa"
