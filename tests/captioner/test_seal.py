"""Fingerprints of a captioner's files: what was changed since it was saved is refused, with what to do."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import edit_json, make_captioner, randomize_adapters, unseal
from transformers import AutoModel, AutoProcessor

from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.captioner.seal_ituning import json_fingerprint, tensors_fingerprint
from ituning_hf.hub.inspection import describe

LAYER = "text_model.transformer.h.1.adapter"


@pytest.fixture(scope="module")
def original(backbones: dict[str, Path], processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_captioner(make_captioner(backbones), processor, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "captioner"))


def rewrite(folder: Path, **changed: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {f"{LAYER}.{name}.weight": tensor for name, tensor in changed.items()}, path)


def swap_keys_and_values(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    key, value = (stored[f"{LAYER}.{name}.weight"] for name in ("k_proj", "v_proj"))
    rewrite(folder, k_proj=value, v_proj=key)


def change_one_number(folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")[f"{LAYER}.q_proj.weight"]
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    rewrite(folder, q_proj=weight)


# All of these fit, and loaded without a word as another captioner before files had fingerprints.
CHANGED_ADAPTERS = [swap_keys_and_values, change_one_number]
CHANGED_SETTINGS = [
    {"adapter_scale": 0.5},
    {"adapter_num_heads": 3},
    {"vision_feature_layer": -2},
    {"adapter_dropout": 0.1},
    {"is_encoder_decoder": True},
    {"adapter_fingerprint": None},
]
LOADERS = [ITuningForCaptioning.from_pretrained, AutoModel.from_pretrained, describe]


@pytest.mark.parametrize("change", CHANGED_ADAPTERS)
def test_changed_tensors_are_refused(folder: Path, change: Callable):
    change(folder)
    for load in LOADERS:
        with pytest.raises(ValueError, match=r"adapter file of .* is not the one that config\.json was"):
            load(folder)
    unseal(folder)
    ITuningForCaptioning.from_pretrained(folder)


@pytest.mark.parametrize("change", CHANGED_SETTINGS)
def test_changed_settings_are_refused(folder: Path, change: dict):
    edit_json(folder / "config.json", **change)
    for load in LOADERS:
        with pytest.raises(ValueError, match=r"config\.json was changed .* with the setting as a keyword"):
            load(folder)


def test_a_tensor_without_axes_is_refused_like_any_other(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"x": torch.tensor(1.0)}, folder / "model.safetensors")
    for load in LOADERS:
        with pytest.raises(ValueError, match=r"adapter file of .* is not the one that config\.json was"):
            load(folder)


def test_two_captioners_files_do_not_mix(folder: Path, backbones, tmp_path: Path):
    other = randomize_adapters(make_captioner(backbones, adapter_scale=2.0), seed=3)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", folder)
    with pytest.raises(ValueError, match=r"or is another captioner's: copy or download both again"):
        ITuningForCaptioning.from_pretrained(folder)


def test_a_keyword_changes_a_setting_on_purpose_and_saving_keeps_it(folder: Path, tmp_path: Path):
    changed = ITuningForCaptioning.from_pretrained(folder, adapter_scale=0.5, vision_feature_layer=-2)
    changed.save_pretrained(tmp_path / "changed")
    config = ITuningForCaptioning.from_pretrained(tmp_path / "changed").config
    assert (config.adapter_scale, config.vision_feature_layer) == (0.5, -2)
    config.adapter_dropout = 0.25
    config.save_pretrained(folder)
    assert ITuningForCaptioning.from_pretrained(folder).adapters()[0].dropout.p == 0.25


def test_where_a_backbone_lies_may_be_edited(folder: Path, backbones, tmp_path: Path):
    moved = shutil.copytree(backbones["text"], tmp_path / "moved")
    edit_json(folder / "config.json", text_model_name_or_path=str(moved), transformers_version="5.99")
    assert ITuningForCaptioning.from_pretrained(folder).config.text_model_name_or_path == str(moved)


def test_a_backbone_of_another_architecture_is_refused_where_it_lies(folder: Path, backbones, tmp_path: Path):
    moved = shutil.copytree(backbones["text"], tmp_path / "moved")
    edit_json(moved / "config.json", activation_function="relu")
    with pytest.raises(ValueError, match=r"text model found at .* has activation_function='relu', wanted"):
        ITuningForCaptioning.from_pretrained(folder, text_model_name_or_path=moved)


def test_what_was_trained_on_is_saved_with_its_own_fingerprint(folder: Path, tmp_path: Path):
    model = randomize_adapters(ITuningForCaptioning.from_pretrained(folder), seed=8)
    model.save_pretrained(tmp_path / "trained")
    assert ITuningForCaptioning.from_pretrained(tmp_path / "trained").config.adapter_fingerprint != (
        ITuningConfig.from_pretrained(folder).adapter_fingerprint
    )


@pytest.mark.parametrize("load", [ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained])
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tokenizer.json", '"a": ', '"b": '),
        ("tokenizer_config.json", '"errors": "replace"', '"errors": "ignore"'),
        ("processor_config.json", '"resample": 3', '"resample": 2'),
        ("processor_config.json", '"do_normalize": true', '"do_normalize": false'),
    ],
)
def test_a_changed_processor_is_refused(folder: Path, file: str, old: str, new: str, load: Callable):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(
        ValueError, match=rf"was changed after it was saved \({file}\).* set its attributes .* save it"
    ):
        load(folder)


@pytest.mark.parametrize("file", ["special_tokens_map.json", "added_tokens.json"])
def test_a_file_that_was_put_beside_a_processor_is_refused(folder: Path, file: str):
    (folder / file).write_text('{"<|x|>": 7}')
    with pytest.raises(ValueError, match=rf"was changed after it was saved \({file}\)"):
        ITuningProcessor.from_pretrained(folder)


def test_a_vocabulary_beside_the_tokenizer_is_read_by_nobody(folder: Path):
    before = AutoProcessor.from_pretrained(folder).tokenizer("a dog runs").input_ids
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for load in (ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained):
        assert load(folder).tokenizer("a dog runs").input_ids == before


def test_image_preparation_may_be_saved_beside_it_for_other_programs(folder: Path):
    processor = ITuningProcessor.from_pretrained(folder)
    processor.image_processor.do_center_crop = False
    processor.image_processor.save_pretrained(folder)
    assert (folder / "preprocessor_config.json").is_file()
    for load in (ITuningProcessor.from_pretrained, AutoProcessor.from_pretrained):
        assert load(folder).image_processor.do_center_crop  # Transformers reads the processor's own


def test_a_processor_changed_in_python_is_saved_as_it_is(folder: Path):
    processor = ITuningProcessor.from_pretrained(folder)
    processor.image_processor.do_center_crop = False
    processor.save_pretrained(folder)
    assert not ITuningProcessor.from_pretrained(folder).image_processor.do_center_crop


def test_the_ends_of_lines_do_not_count(folder: Path):
    for file in ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        path = folder / file
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    ITuningForCaptioning.from_pretrained(folder)
    ITuningProcessor.from_pretrained(folder)


def test_captioners_of_the_time_before_load_as_they_did(folder: Path):
    unseal(folder)
    edit_json(folder / "config.json", adapter_scale=0.5)
    edit_json(folder / "tokenizer_config.json", errors="ignore")
    model = ITuningForCaptioning.from_pretrained(folder)
    assert (model.config.adapter_scale, model.config.format_version) == (0.5, 1)
    model.save_pretrained(folder)  # from now on only code that knows of fingerprints may read it
    assert ITuningForCaptioning.from_pretrained(folder).config.format_version == 2
    assert ITuningProcessor.from_pretrained(folder).tokenizer.init_kwargs["errors"] == "ignore"


def test_saving_twice_gives_the_same_bytes(folder: Path, backbones, processor, tmp_path: Path):
    save_captioner(make_captioner(backbones), processor, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_fingerprint_of_json_is_of_what_it_says():
    content = {"a": [1, {"b": 0.1}], "c": None}
    assert json_fingerprint(content) == json_fingerprint({"c": None, "a": [1, {"b": 0.1}]})
    assert json_fingerprint(content | {"_commit_hash": "x", "config_fingerprint": "y"}) == json_fingerprint(
        content
    )
    others = [{"a": 1.0}, {"a": 1}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": None}, {}, {"b": 1}]
    assert len({json_fingerprint(other) for other in others}) == len(others)
    # Transformers stores what is not finite as an object, and gives it back as a number.
    assert json_fingerprint({"a": math.inf}) == json_fingerprint({"a": {"__float__": "Infinity"}})
    deep: dict = {}
    for _ in range(10_000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested too deeply"):
        json_fingerprint(deep)


def test_the_fingerprint_of_tensors_is_of_all_that_they_are():
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3)
    base = tensors_fingerprint({"a": tensor, "b": tensor + 1})
    assert tensors_fingerprint({"b": tensor + 1, "a": tensor}) == base
    assert tensors_fingerprint({"a": tensor.T.contiguous().T, "b": tensor + 1}) == base
    others = [
        {"b": tensor, "a": tensor + 1},
        {"a": tensor.view(3, 2), "b": tensor + 1},
        {"a": tensor.view(torch.int32), "b": tensor + 1},
        {"a": tensor},
        {"a": tensor.bfloat16(), "b": tensor + 1},
        {"a": -tensor, "b": tensor + 1},
    ]
    assert len({base, *map(tensors_fingerprint, others)}) == len(others) + 1


def test_the_digests_are_where_they_are_looked_for(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert config["adapter_fingerprint"] == tensors_fingerprint(load_file(folder / "model.safetensors"))
    assert config["config_fingerprint"] == json_fingerprint(config)
    files = json.loads((folder / "processor_config.json").read_text())["fingerprints"]
    assert set(files) == {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
