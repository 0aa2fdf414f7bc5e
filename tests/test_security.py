"""What a captioner from a stranger cannot do: run code by being loaded, or read files beside its own."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from fresh_process import run_fresh
from small_models import ADAPTER, LeavesAMark, edit_json, make_captioner, unseal
from transformers import AutoModel, AutoProcessor

from ituning_hf import ITuningForCaptioning, ITuningProcessor, load_captioner, save_captioner
from ituning_hf.hub.inspection import describe

CODE = """
from pathlib import Path
from transformers import {base}

Path({mark!r}).touch()


class Custom({base}):
    pass
"""
LOADERS = [ITuningForCaptioning.from_pretrained, load_captioner, describe]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there as soon as code was run that must not be."""
    return tmp_path / "mark"


@pytest.fixture
def own_backbones(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(backbones[name], tmp_path / name)) for name in ("vision", "text")}


@pytest.fixture
def folder(own_backbones: dict[str, Path], processor: ITuningProcessor, tmp_path: Path) -> Path:
    save_captioner(make_captioner(own_backbones), processor, tmp_path / "captioner")
    return tmp_path / "captioner"


def add_custom_code(backbones: dict[str, Path], mark: Path) -> None:
    """Have every part of the backbones ask for code of their own."""
    for kind, base in (("vision", "CLIPVisionModel"), ("text", "GPT2LMHeadModel")):
        (backbones[kind] / "custom.py").write_text(CODE.format(base=base, mark=str(mark)))
        auto_classes = (
            "AutoConfig",
            "AutoModel",
            "AutoModelForCausalLM",
            "AutoImageProcessor",
            "AutoTokenizer",
        )
        for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
            if (backbones[kind] / file).is_file():
                edit_json(backbones[kind] / file, auto_map=dict.fromkeys(auto_classes, "custom.Custom"))


@pytest.mark.parametrize("load", [ITuningForCaptioning.from_pretrained, AutoModel.from_pretrained])
def test_backbones_bring_no_code(folder, own_backbones, mark, load):
    add_custom_code(own_backbones, mark)
    load(folder, trust_remote_code=True)
    ITuningForCaptioning.from_vision_text_pretrained(
        own_backbones["vision"], own_backbones["text"], **ADAPTER
    )
    ITuningProcessor.from_vision_text_pretrained(own_backbones["vision"], own_backbones["text"])
    assert not mark.exists()


def test_backbones_bring_no_code_where_the_captioners_own_is_trusted(folder, own_backbones, mark, tmp_path):
    add_custom_code(own_backbones, mark)
    script = """
from pathlib import Path
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
import json
folder, backbone, mark = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
found = {"model": type(model).__module__.split(".")[0], "run": Path(mark).exists()}
get_class_from_dynamic_module("custom.Custom", backbone)
found["would leave a mark"] = Path(mark).exists()
"""
    found = run_fresh(script, tmp_path, folder, own_backbones["text"], mark)
    assert found == {"model": "transformers_modules", "run": False, "would leave a mark": True}


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_no_code_comes_from_another_repository(folder, options, mark, tmp_path):
    (folder / "evil.py").write_text(CODE.format(base="PreTrainedModel", mark=str(mark)))
    for value in ("other/repo--evil.Custom", "evil.Custom", "../evil.Custom"):
        keys = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
        for file in ("config.json", "processor_config.json", "tokenizer_config.json"):
            edit_json(folder / file, auto_map=dict.fromkeys(keys, value))
        ITuningForCaptioning.from_pretrained(folder, **options)
        ITuningProcessor.from_pretrained(folder)
        load_captioner(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.safetensors"])
@pytest.mark.parametrize("load", LOADERS)
def test_a_pickled_adapter_is_refused_and_never_opened(folder, mark, name: str, load):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(LeavesAMark(mark)))
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        load(folder)
    torch.save(LeavesAMark(mark), folder / name)
    with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_pickled_backbone_runs_no_code(folder, own_backbones, mark, kind: str):
    (own_backbones[kind] / "model.safetensors").unlink()
    torch.save({"wte.weight": LeavesAMark(mark)}, own_backbones[kind] / "pytorch_model.bin")
    for load in LOADERS[:2]:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            load(folder)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        ITuningForCaptioning.from_vision_text_pretrained(own_backbones["vision"], own_backbones["text"])
    assert not mark.exists()


def test_the_pickle_would_leave_a_mark(mark):
    pickle.loads(pickle.dumps(LeavesAMark(mark)))
    assert mark.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"fast_tokenizer_files": ["../outside/tokenizer.4.0.json"]},
        {"vocab": "../outside/vocab.json", "merges": "../outside/merges.txt"},
    ],
)
@pytest.mark.parametrize("load", [ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_a_tokenizer_is_not_read_from_elsewhere(folder, load, fields):
    edit_json(folder / "tokenizer_config.json", **fields)
    with pytest.raises(ValueError, match="names other files to read the tokenizer from"):
        load(folder)


@pytest.mark.parametrize("field", ["vocab_file", "merges_file", "tokenizer_file", "name_or_path"])
def test_other_paths_in_a_tokenizers_settings_are_not_followed(folder, field: str, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "any.json").write_text("{")
    unseal(folder)
    edit_json(folder / "tokenizer_config.json", **{field: str(outside / "any.json")})
    before = ITuningProcessor.from_pretrained(folder).tokenizer("a dog runs").input_ids
    assert before == AutoProcessor.from_pretrained(folder).tokenizer("a dog runs").input_ids
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="The tokenizer is empty"):
        ITuningProcessor.from_pretrained(folder)


def test_the_configuration_cannot_have_the_adapter_read_from_elsewhere(folder, tmp_path: Path):
    weights = shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    names = ("transformers_weights", "_name_or_path", "name_or_path", "subfolder", "weights")
    unseal(folder)
    edit_json(folder / "config.json", **dict.fromkeys(names, f"../{Path(weights).name}"))
    with pytest.raises(OSError, match=r"does not appear to have a file named model\.safetensors"):
        ITuningForCaptioning.from_pretrained(folder)


@pytest.mark.parametrize(
    "field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
)
@pytest.mark.parametrize("part", [None, "vision_config", "text_config"])
def test_the_configuration_cannot_name_a_kernel_to_run(folder, part: str | None, field: str):
    stored = json.loads((folder / "config.json").read_text())
    changed = {field: "other/kernel"}
    edit_json(folder / "config.json", **(changed if part is None else {part: stored[part] | changed}))
    describe(folder)
    for load in (ITuningForCaptioning.from_pretrained, AutoModel.from_pretrained):
        model = load(folder)
        assert model.text_model.config._attn_implementation == "sdpa"
        model = load(folder, attn_implementation="eager")
        assert model.text_model.config._attn_implementation == "eager"


def test_a_backbones_configuration_cannot_either(captioner, backbones, folder, tmp_path):
    text = shutil.copytree(backbones["text"], tmp_path / "with a kernel")
    edit_json(text / "config.json", attn_implementation="other/kernel")
    model = ITuningForCaptioning.from_pretrained(folder, text_model_name_or_path=text)
    assert model.text_model.config._attn_implementation == "sdpa"


def test_parts_of_the_configuration_are_configurations(folder):
    unseal(folder)
    edit_json(folder / "config.json", vision_config="x")
    with pytest.raises(ValueError, match="vision_config is 'x', expected the frozen model's configuration"):
        ITuningForCaptioning.from_pretrained(folder)
