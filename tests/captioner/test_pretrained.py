"""Saving and loading: files, options, backbones that moved, and backbones that are refused."""

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from small_models import (
    ADAPTER,
    edit_json,
    logits_of,
    make_batch,
    make_captioner,
    put_in_hub_cache,
    randomize_adapters,
    reinitialise,
    rewrite,
)
from transformers import AutoModel, CLIPVisionModel, GenerationConfig, GPT2LMHeadModel

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.captioner.backbones_ituning import Backbone
from ituning_hf.captioner.configuration_ituning import CaptionerError

PARTS = [f"{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")]
KEYS = {f"text_model.transformer.h.{i}.adapter.{part}" for i in range(4) for part in PARTS}
PIXELS, TEXT_ROWS = (make_batch(k=2)[name] for name in ("pixel_values", "input_ids"))
A_KEY = "text_model.transformer.h.2.adapter.v_proj.weight"


def assert_equal_files(found: Path, expected: Path) -> None:
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def test_format_version_1_has_no_norm_of_the_image_tokens(captioner, backbones, tmp_path: Path):
    plain = make_captioner(backbones, vision_feature_norm=False)
    plain.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"format_version": 1}
    del fields["vision_feature_norm"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = ITuningForCaptioning.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(plain))
    assert not torch.allclose(logits_of(loaded), logits_of(captioner))
    assert (loaded.config.format_version, loaded.config.vision_feature_norm) == (2, False)


# --- What is written


def test_the_folder_holds_adapter_settings_and_code(captioner, saved: Path):
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "adapter_ituning.py",
        "backbones_ituning.py",
        "configuration_ituning.py",
        "decoder_layers_ituning.py",
        "decoders_ituning.py",
        "encoders_ituning.py",
        "generation_ituning.py",
        "loss_ituning.py",
        "modeling_ituning.py",
        "pretrained_ituning.py",
    }
    assert set(load_file(saved / "model.safetensors")) == KEYS
    weights = 4 * sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    assert weights <= (saved / "model.safetensors").stat().st_size < weights + 6_000
    assert json.loads((saved / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_ituning.ITuningConfig",
        "AutoModel": "modeling_ituning.ITuningForCaptioning",
        "AutoModelForImageTextToText": "modeling_ituning.ITuningForCaptioning",
    }


def test_only_the_adapter_of_a_state_dict_is_saved(captioner, tmp_path: Path):
    state_dict = {name: tensor + (name in KEYS) for name, tensor in captioner.state_dict().items()}
    captioner.save_pretrained(tmp_path, state_dict=state_dict)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == KEYS
    assert all(torch.equal(stored[key], state_dict[key]) for key in KEYS)


def test_saving_with_backbones_in_memory_warns_and_loading_fails(
    captioner, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = ITuningConfig(
        vision_config=captioner.config.vision_config.to_dict(),
        text_config=captioner.config.text_config.to_dict(),
        **ADAPTER,
    )
    ITuningForCaptioning(config).save_pretrained(tmp_path)
    assert "vision model exists only in memory" in caplog.text
    assert "text model exists only in memory" in caplog.text
    with pytest.raises(ValueError, match=r"vision_model_name_or_path=None.*cannot be loaded"):
        ITuningForCaptioning.from_pretrained(tmp_path)


# --- Loading


def test_a_loaded_captioner_equals_the_saved_one(captioner, saved: Path, tmp_path: Path):
    loaded = ITuningForCaptioning.from_pretrained(saved)
    assert torch.equal(logits_of(loaded), logits_of(captioner))
    assert not any(module.training for module in loaded.modules())
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == KEYS
    assert loaded.config.name_or_path == loaded.name_or_path == str(saved)
    loaded.save_pretrained(tmp_path / "again")
    assert_equal_files(tmp_path / "again", saved)


@pytest.mark.parametrize(("name", "dtype"), [("dtype", torch.bfloat16), ("torch_dtype", "bfloat16")])
def test_dtype_casts_everything(saved: Path, name: str, dtype: Any):
    model = ITuningForCaptioning.from_pretrained(saved, **{name: dtype})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits_of(model).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"dtype": "auto"}])
def test_by_default_each_part_keeps_the_precision_of_its_file(
    own_backbones: dict[str, Path], tmp_path: Path, options: dict[str, Any]
):
    GPT2LMHeadModel.from_pretrained(own_backbones["text"]).half().save_pretrained(own_backbones["text"])
    model = make_captioner(own_backbones)
    for adapter in model.adapters().values():
        adapter.bfloat16()
    model.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", **options)
    assert loaded.vision_model.dtype is torch.float32
    assert loaded.text_model.transformer.wte.weight.dtype is torch.float16
    assert {p.dtype for a in loaded.adapters().values() for p in a.parameters()} == {torch.bfloat16}


def test_eager_attention_reaches_every_part(captioner, saved: Path, backbones: dict[str, Path]):
    loaded = ITuningForCaptioning.from_pretrained(saved, attn_implementation="eager")
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "low_cpu_mem_usage": True}
    of_auto_class = AutoModel.from_pretrained(saved, **options)
    assert {p.dtype for p in of_auto_class.parameters()} == {torch.bfloat16}
    built = make_captioner(backbones, attn_implementation="eager")
    captioner.set_attn_implementation("eager")
    for model in (loaded, of_auto_class, built, captioner):
        blocks = [block.attn for block in model.text_model.transformer.h]
        layers = [layer.self_attn for layer in model.vision_model.encoder.layers]
        parts = [model, model.vision_model, model.text_model, *blocks, *layers]
        assert {part.config._attn_implementation for part in parts} == {"eager"}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_complete_and_independent(captioner, again: Callable):
    expected = logits_of(captioner)
    other = again(captioner)
    assert torch.equal(logits_of(other), expected)
    assert other.text_model.config is other.config.text_config
    randomize_adapters(other, seed=5)
    other.set_attn_implementation("eager")
    assert torch.equal(logits_of(captioner), expected)
    assert captioner.config.text_config._attn_implementation == "sdpa"


# --- Devices

SPLIT = {"vision_model": "cpu", "text_model": "cpu"}
PARTS_OF_TEXT = ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")
WITHOUT_BLOCKS = {f"text_model.{part}": "cpu" for part in PARTS_OF_TEXT}


@pytest.mark.parametrize("device_map", ["cpu", "auto", torch.device("cpu"), {"": "cpu"}, SPLIT])
def test_device_maps(captioner, saved: Path, device_map: Any):
    loaded = ITuningForCaptioning.from_pretrained(saved, device_map=device_map)
    assert torch.equal(logits_of(loaded), logits_of(captioner))


OFFLOADED = [
    {"vision_model": "cpu", **WITHOUT_BLOCKS}
    | {f"text_model.transformer.h.{i}": "disk" if i % 2 else "cpu" for i in range(4)},
    {"vision_model": "disk", **WITHOUT_BLOCKS, "text_model.transformer.h": "disk"},
    {"vision_model": "disk", "text_model": "disk"},
]


@pytest.mark.parametrize("device_map", OFFLOADED)
def test_offloaded_backbones_leave_the_adapter_in_memory(
    captioner, saved: Path, tmp_path: Path, device_map: dict[str, str]
):
    accelerate = pytest.importorskip("accelerate")
    if device_map["vision_model"] == "disk" and Version(accelerate.__version__) < Version("1.15"):
        with pytest.raises(ValueError, match="offload the whole model to the disk"):
            ITuningForCaptioning.from_pretrained(saved, device_map=device_map)
        return
    loaded = ITuningForCaptioning.from_pretrained(saved, device_map=device_map)
    blocks = loaded.text_model.transformer.h
    assert blocks[3].mlp.c_fc.weight.device.type == "meta"
    assert {p.device.type for a in loaded.adapters().values() for p in a.parameters()} == {"cpu"}
    assert all(block._hf_hook.execution_device is not None for block in blocks)
    assert torch.equal(logits_of(loaded), logits_of(captioner))
    for options in ({}, {"num_beams": 3}):
        settings = {"pixel_values": PIXELS, "max_new_tokens": 5, **options}
        assert torch.equal(loaded.generate(**settings), captioner.generate(**settings))
    for model in (loaded.train(), captioner):
        model(PIXELS, TEXT_ROWS, labels=TEXT_ROWS, skip_logits=True).loss.backward()
    for name, p in captioner.named_parameters():
        if p.requires_grad:
            assert torch.equal(loaded.get_parameter(name).grad, p.grad)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_a_device_map_that_leaves_a_backbone_out_is_refused(saved: Path):
    with pytest.raises(ValueError, match=r"no device for 'text_model', only for \['vision_model'\]"):
        ITuningForCaptioning.from_pretrained(saved, device_map={"vision_model": "cpu"})


# --- Without the vision encoder


@pytest.fixture
def without_encoder(own_backbones: dict[str, Path], captioner, tmp_path: Path) -> ITuningForCaptioning:
    """The captioner, loaded while its encoder did not exist."""
    make_captioner(own_backbones).save_pretrained(tmp_path / "captioner")
    own_backbones["vision"].rename(tmp_path / "moved")
    return ITuningForCaptioning.from_pretrained(tmp_path / "captioner", load_vision_model=False)


def test_an_unloaded_encoder_need_not_exist(captioner, without_encoder):
    features = captioner.get_image_features(PIXELS)
    found = without_encoder(input_ids=TEXT_ROWS, visual_features=features).logits
    assert torch.equal(found, logits_of(captioner))
    for options in ({}, {"num_beams": 3}):
        settings = {"visual_features": features, "max_new_tokens": 5, **options}
        assert torch.equal(without_encoder.generate(**settings), captioner.generate(**settings))
    assert not list(without_encoder.vision_model.parameters())
    assert not without_encoder.vision_model.training
    expected = sum(p.numel() for p in captioner.parameters()) - captioner.vision_model.num_parameters()
    assert without_encoder.num_parameters() == expected
    assert (without_encoder.device.type, without_encoder.dtype) == ("cpu", torch.float32)


def test_a_captioner_without_its_encoder_is_saved_completely(captioner, without_encoder, tmp_path: Path):
    without_encoder.save_pretrained(tmp_path / "again")
    assert_equal_files(tmp_path / "again", tmp_path / "captioner")
    with pytest.raises(OSError, match=r"frozen vision model was not found at .*If it has moved"):
        ITuningForCaptioning.from_pretrained(tmp_path / "again")
    (tmp_path / "moved").rename(tmp_path / "vision")
    again = ITuningForCaptioning.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again), logits_of(captioner))


def test_a_new_captioner_over_a_recorded_encoder(own_backbones: dict[str, Path], tmp_path: Path):
    model = make_captioner(own_backbones)
    recorded = Backbone("vision", own_backbones["vision"]).config_fields()
    assert recorded["vision_model_fingerprint"] == model.config.vision_model_fingerprint
    own_backbones["vision"].rename(tmp_path / "moved")
    new = ITuningForCaptioning.from_vision_text_pretrained(recorded, own_backbones["text"], **ADAPTER)
    randomize_adapters(new)
    assert not new.training
    features = model.get_image_features(PIXELS)
    assert torch.equal(new(input_ids=TEXT_ROWS, visual_features=features).logits, logits_of(model))
    for name, captioner in (("new", new), ("whole", model)):
        captioner.save_pretrained(tmp_path / name)
    assert_equal_files(tmp_path / "new", tmp_path / "whole")


# --- Quantization


def test_quantization_settings_are_not_saved(captioner, tmp_path: Path):
    captioner.config.text_config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    captioner.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_only_the_language_model_is_quantized(captioner, saved: Path, tmp_path: Path, bits: str):
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(**{bits: True})
    loaded = ITuningForCaptioning.from_pretrained(saved, quantization_config=settings)
    kinds = {"load_in_4bit": bnb.nn.Linear4bit, "load_in_8bit": bnb.nn.Linear8bitLt}
    quantized = {name for name, module in loaded.named_modules() if isinstance(module, kinds[bits])}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert quantized == {f"text_model.transformer.h.{i}.{layer}" for i in range(4) for layer in layers}
    if bits == "load_in_4bit":  # its kernels do not support layers this small
        return
    found, expected = logits_of(loaded), logits_of(captioner)
    assert 0 < (found - expected).abs().max() < 0.3 * expected.abs().max()
    loaded.train()(PIXELS, TEXT_ROWS, labels=TEXT_ROWS).loss.backward()
    assert all(adapter.out_proj.weight.grad.any() for adapter in loaded.adapters().values())
    loaded.save_pretrained(tmp_path / "again")
    again = ITuningForCaptioning.from_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(again), expected)


# --- The adapter's files

DAMAGES = {"truncated": lambda content: content[:-10], "empty": lambda content: b""}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("part", ["adapter", "text"])
def test_a_damaged_weights_file_is_named(
    own_backbones: dict[str, Path], tmp_path: Path, part: str, damage: Callable
):
    make_captioner(own_backbones).save_pretrained(tmp_path / "captioner")
    path = {"adapter": tmp_path / "captioner", **own_backbones}[part] / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CaptionerError, match=rf"{path} is damaged \(.*copy or download it again"):
        ITuningForCaptioning.from_pretrained(tmp_path / "captioner")


def test_a_missing_adapter_file_is_named(saved: Path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"file named model\.safetensors"):
        ITuningForCaptioning.from_pretrained(saved)


def test_the_configuration_may_be_edited_overridden_and_replaced(captioner, saved: Path):
    edit_json(saved / "config.json", adapter_scale=3.0)
    config = ITuningConfig.from_pretrained(saved)
    load = partial(ITuningForCaptioning.from_pretrained, saved)
    for adapter in captioner.adapters().values():
        adapter.scale = 3.0
    for loaded in (load(), load(config=config), load(config=saved / "config.json")):
        assert torch.equal(logits_of(loaded), logits_of(captioner))
    assert AutoModel.from_pretrained(saved, config=config).adapters()[0].scale == 3.0
    assert load(adapter_dropout=0.5).adapters()[0].dropout.p == 0.5


def test_a_configuration_with_other_layers_is_refused(saved: Path):
    edit_json(saved / "config.json", adapter_layers=[0, 1, 2])
    with pytest.raises(CaptionerError, match=r"8 unexpected \(first: \['text_model\.transformer\.h\.3\.adap"):
        ITuningForCaptioning.from_pretrained(saved)


def test_generation_settings_are_loaded_and_may_be_edited_or_missing(captioner, tmp_path: Path):
    captioner.generation_config.num_beams = 3
    captioner.save_pretrained(tmp_path)
    edit_json(tmp_path / "generation_config.json", max_new_tokens=9, eos_token_id=None)
    settings = ITuningForCaptioning.from_pretrained(tmp_path).generation_config
    assert (settings.num_beams, settings.max_new_tokens, settings.eos_token_id) == (3, 9, 0)
    given = GenerationConfig(max_new_tokens=7)
    loaded = ITuningForCaptioning.from_pretrained(tmp_path, generation_config=given)
    assert loaded.generation_config is given
    (tmp_path / "generation_config.json").unlink()
    assert ITuningForCaptioning.from_pretrained(tmp_path).generation_config.max_new_tokens == 40


def test_damaged_generation_settings_are_named(saved: Path):
    (saved / "generation_config.json").write_text("{")
    with pytest.raises(OSError, match=r"generation_config\.json' is not a valid JSON file"):
        ITuningForCaptioning.from_pretrained(saved)


def set_to(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({A_KEY: change(tensors[A_KEY])})


HUGE, INFINITE = 3e38, float("inf")
MISFITS = [
    (set_to(lambda t: t * float("nan")), rf"1 not finite \(first: \['{A_KEY}'\]\)"),
    (set_to(lambda t: torch.where(t > 0, INFINITE, -INFINITE)), rf"1 not finite \(first: \['{A_KEY}'\]\)"),
    (lambda tensors: tensors.pop(A_KEY), rf"1 missing \(first: \['{A_KEY}'\]\)"),
    (lambda tensors: tensors.update(extra=torch.ones(2)), r"1 unexpected \(first: \['extra'\]\)"),
    (
        set_to(lambda t: t.T.contiguous()),
        rf"1 mismatched .*{A_KEY} is \(15, 21\) torch\.float32, expected floats \(21, 15\)",
    ),
    (
        set_to(lambda t: t.int()),
        rf"1 mismatched .*{A_KEY} is \(21, 15\) torch\.int32, expected floats \(21, 15\)",
    ),
    (
        lambda tensors: tensors.update({A_KEY + "s": tensors.pop(A_KEY)}),
        r"1 missing .*; 1 unexpected",
    ),
]


GENERATION = [{"num_beams": "five"}, {"max_new_tokens": 0}, {"eos_token_id": "end"}, {"guidance_scale": 2.0}]


@pytest.mark.parametrize("change", GENERATION)
def test_unusable_generation_settings_are_refused(saved: Path, change: dict[str, Any]):
    edit_json(saved / "generation_config.json", **change)
    with pytest.raises(CaptionerError, match=f"generation_config.json.*{next(iter(change))}"):
        ITuningForCaptioning.from_pretrained(saved)


def test_an_adapter_with_huge_values_is_finite(saved: Path):
    rewrite(saved / "model.safetensors", set_to(lambda t: torch.full_like(t, HUGE)))
    ITuningForCaptioning.from_pretrained(saved)


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_mismatched_adapter_file_is_refused(saved: Path, change: Callable, message: str):
    rewrite(saved / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        ITuningForCaptioning.from_pretrained(saved)


def test_unknown_keywords_are_refused(saved: Path, backbones: dict[str, Path]):
    with pytest.raises(TypeError, match=r"from_pretrained got unexpected keyword argument\(s\) \['dtpye'\]"):
        ITuningForCaptioning.from_pretrained(saved, dtpye="bfloat16")
    with pytest.raises(TypeError, match=r"unknown adapter option\(s\) \['adapter_size'\]; the options are"):
        make_captioner(backbones, adapter_size=3)


# --- By Hub id, from the cache

BACKBONES = {
    "vision": (CLIPVisionModel, "layer_norm_eps"),
    "text": (GPT2LMHeadModel, "layer_norm_epsilon"),
}


@pytest.fixture
def hub(backbones: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """Options for a cache that has two revisions of each backbone, with other weights and settings."""
    cache = tmp_path / "cache"
    for kind, (model_class, epsilon) in BACKBONES.items():
        put_in_hub_cache(cache, f"org/{kind}", "a" * 40, backbones[kind])
        other = model_class.from_pretrained(backbones[kind], **{epsilon: 0.25})
        reinitialise(other)
        other.save_pretrained(tmp_path / kind)
        put_in_hub_cache(cache, f"org/{kind}", "b" * 40, tmp_path / kind, "next")
    return {"cache_dir": cache, "local_files_only": True}


def make_hub_captioner(hub: dict[str, Any], seed: int = 0, **options: Any) -> ITuningForCaptioning:
    build = ITuningForCaptioning.from_vision_text_pretrained
    return randomize_adapters(build("org/vision", "org/text", **hub, **ADAPTER, **options), seed)


def test_backbones_by_hub_id_are_pinned_to_their_commits(hub, tmp_path: Path):
    model = make_hub_captioner(hub)
    for kind in BACKBONES:
        assert getattr(model.config, f"{kind}_model_name_or_path") == f"org/{kind}"
        assert getattr(model.config, f"{kind}_model_revision") == "a" * 40
    model.save_pretrained(tmp_path / "captioner")
    (hub["cache_dir"] / "models--org--text/refs/main").write_text("b" * 40)
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner", **hub)
    assert torch.equal(logits_of(loaded), logits_of(model))
    with pytest.raises(ValueError, match=rf"text model at 'org/text' \(revision {'b' * 40}\) is not the one"):
        ITuningForCaptioning.from_pretrained(tmp_path / "captioner", text_model_revision="b" * 40, **hub)


@pytest.mark.parametrize("changed", BACKBONES)
def test_a_new_captioner_is_built_over_the_given_revision(hub, changed: str):
    usual, model = make_hub_captioner(hub), make_hub_captioner(hub, **{f"{changed}_revision": "next"})
    for kind, (_, epsilon) in BACKBONES.items():
        is_next, config = kind == changed, model.config
        assert getattr(config, f"{kind}_model_revision") == ("b" if is_next else "a") * 40
        field = f"{kind}_model_fingerprint"
        assert (getattr(config, field) != getattr(usual.config, field)) == is_next
        assert (getattr(getattr(config, f"{kind}_config"), epsilon) == 0.25) == is_next
        new, old = (next(getattr(m, f"{kind}_model").parameters()) for m in (model, usual))
        assert torch.equal(new, old) == (not is_next)


def test_a_captioner_by_hub_id_has_its_own_revision(hub, tmp_path: Path):
    models = {"v1": make_hub_captioner(hub, seed=1), "main": make_hub_captioner(hub, seed=2)}
    for (branch, model), commit in zip(models.items(), ("d" * 40, "e" * 40), strict=True):
        model.save_pretrained(tmp_path / branch)
        put_in_hub_cache(hub["cache_dir"], "org/captioner", commit, tmp_path / branch, branch)
    for revision, name in ((None, "main"), ("v1", "v1"), ("d" * 40, "v1")):
        loaded = ITuningForCaptioning.from_pretrained("org/captioner", revision=revision, **hub)
        assert torch.equal(logits_of(loaded), logits_of(models[name]))


def test_a_captioner_may_be_in_a_subfolder(captioner, saved: Path):
    loaded = ITuningForCaptioning.from_pretrained(saved.parent, subfolder="captioner")
    assert torch.equal(logits_of(loaded), logits_of(captioner))
