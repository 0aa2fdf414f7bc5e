"""The frozen backbones: those that moved, other ones, changed ones, and their fingerprint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from small_models import logits_of, make_batch, make_captioner, put_in_hub_cache, reinitialise, rewrite
from transformers import CLIPVisionModel, GPT2LMHeadModel, GPT2Model

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.backbones_ituning import Backbone
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.inference.int8 import quantize_frozen_weights


def lora_config() -> LoraConfig:
    """Make a new configuration, because PEFT writes the name of the base model into it."""
    return LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)


# --- Backbones that moved, and other backbones


def test_backbones_that_moved_are_named_and_can_be_given_by_path(
    own_backbones: dict[str, Path], tmp_path: Path, monkeypatch
):
    model = make_captioner(own_backbones)
    model.save_pretrained(tmp_path / "captioner")
    shutil.move(own_backbones["vision"], tmp_path / "moved")
    with pytest.raises(OSError, match=r"not found at '.*vision': there is no such folder. If it has moved"):
        ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    (tmp_path / "gguf").mkdir()
    with pytest.raises(OSError, match=r"not found at '.*gguf': it has no config\.json \(to convert GGUF"):
        ITuningForCaptioning.from_vision_text_pretrained(tmp_path / "moved", tmp_path / "gguf")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "moved", str(tmp_path / "moved"), "moved"):
        loaded = ITuningForCaptioning.from_pretrained("captioner", vision_model_name_or_path=place)
        assert torch.equal(logits_of(loaded), logits_of(model))
        assert loaded.config.vision_model_name_or_path == str(tmp_path / "moved")
    loaded.save_pretrained("again")
    assert torch.equal(logits_of(ITuningForCaptioning.from_pretrained("again")), logits_of(model))


def nudge_one_norm(model: torch.nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    norms[2].weight.data[3] += 1e-6


@pytest.mark.parametrize("change", [reinitialise, nudge_one_norm])
@pytest.mark.parametrize(("part", "model_class"), [("vision", CLIPVisionModel), ("text", GPT2LMHeadModel)])
def test_other_backbones_are_refused(
    saved: Path, backbones: dict[str, Path], tmp_path: Path, part: str, model_class: type, change: Callable
):
    other = model_class.from_pretrained(backbones[part])
    change(other)
    other.save_pretrained(tmp_path / "other")
    wanted, found = (Backbone(part, path).fingerprint() for path in (backbones[part], tmp_path / "other"))
    assert wanted != found
    message = rf"{part} model at '.*other' is not the one .* is {found}, expected {wanted}\. Use the"
    with pytest.raises(CaptionerError, match=message):
        ITuningForCaptioning.from_pretrained(saved, **{f"{part}_model_name_or_path": tmp_path / "other"})


def test_a_backbone_of_another_model_type_is_refused(saved: Path, backbones: dict[str, Path]):
    with pytest.raises(ValueError, match="vision encoder's model_type is 'gpt2', expected one of"):
        ITuningForCaptioning.from_pretrained(saved, vision_model_name_or_path=backbones["text"])


INCOMPLETE = [
    ("vision", "encoder.layers.1.mlp.fc1.weight"),
    ("text", "transformer.h.3.attn.c_proj.bias"),
]


@pytest.mark.parametrize(("part", "key"), INCOMPLETE)
@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_an_incomplete_backbone_is_refused(own_backbones: dict[str, Path], part: str, key: str, change: str):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        (name,) = [name for name in tensors if name.endswith(key)]
        if change == "missing":
            del tensors[name]
        else:
            tensors[name] = tensors[name][:-1].clone()

    rewrite(own_backbones[part] / "model.safetensors", spoil)
    message = rf"{part} model at '.*{part}' is incomplete: 1 weights are missing or .*{key}"
    with pytest.raises(CaptionerError, match=message):
        make_captioner(own_backbones)


# --- The fingerprint


def save_sharded(model: GPT2LMHeadModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_as_bin(model: GPT2LMHeadModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def save_without_prefix(model: GPT2LMHeadModel, folder: Path) -> None:
    base = GPT2Model(model.config)
    base.load_state_dict(model.transformer.state_dict())
    base.save_pretrained(folder)
    assert "h.0.ln_1.weight" in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("save", [save_sharded, save_as_bin, save_without_prefix])
def test_the_fingerprint_does_not_depend_on_the_file_format(
    captioner, saved: Path, backbones: dict[str, Path], tmp_path: Path, save: Callable
):
    (tmp_path / "other").mkdir()
    save(GPT2LMHeadModel.from_pretrained(backbones["text"]), tmp_path / "other")
    wanted = Backbone("text", backbones["text"]).fingerprint()
    assert Backbone("text", tmp_path / "other").fingerprint() == wanted
    loaded = ITuningForCaptioning.from_pretrained(saved, text_model_name_or_path=tmp_path / "other")
    assert torch.equal(logits_of(loaded), logits_of(captioner))


# --- Backbones that changed after loading


def merge_lora(model: ITuningForCaptioning) -> None:
    get_peft_model(model, lora_config()).merge_and_unload()


def train_text_model(model: ITuningForCaptioning) -> None:
    model.text_model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.text_model.parameters(), lr=1e-3)
    model.train()(**make_batch()).loss.backward()
    optimizer.step()
    model.eval()


def change_vision_model(model: ITuningForCaptioning) -> None:
    reinitialise(model.vision_model)


CHANGES = [("text", merge_lora), ("text", train_text_model), ("vision", change_vision_model)]


@pytest.mark.parametrize(("part", "change"), CHANGES)
def test_a_changed_backbone_is_saved_before_the_captioner(
    captioner, tmp_path: Path, part: str, change: Callable[[ITuningForCaptioning], None]
):
    before = logits_of(captioner)
    change(captioner)
    changed = logits_of(captioner)
    assert not torch.allclose(changed, before)
    message = rf"{part} model in memory is not the one at .* call model.save_backbone\(\"{part}\", folder\)"
    with pytest.raises(CaptionerError, match=message):
        captioner.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()

    captioner.save_backbone(part, tmp_path / "changed")
    captioner.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    assert torch.equal(logits_of(loaded), changed)
    assert getattr(loaded.config, f"{part}_model_name_or_path") == str(tmp_path / "changed")


def test_a_lora_that_is_not_merged_is_not_lost(captioner, tmp_path: Path):
    inject_adapter_in_model(lora_config(), captioner)
    with pytest.raises(CaptionerError, match=r"it has \d+ additional weights .*lora_A.*merge_and_unload\(\)"):
        captioner.save_pretrained(tmp_path / "refused")
    with pytest.raises(CaptionerError, match=r"has PEFT adapters .*c_attn.*merge_and_unload\(\)"):
        captioner.save_backbone("text", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=r".*adapter\.q_proj"),
        LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["adapter"]),
    ],
)
def test_adapters_that_peft_wraps_are_saved_after_unloading(captioner, tmp_path: Path, config: LoraConfig):
    lora = get_peft_model(captioner, config)
    with pytest.raises(CaptionerError, match=r"wrapped by PEFT .*adapter.*merge_and_unload\(\)"):
        captioner.save_pretrained(tmp_path / "refused")
    lora.unload().save_pretrained(tmp_path / "captioner")
    assert set(load_file(tmp_path / "captioner/model.safetensors")) == set(captioner.adapter_state_dict())


def undo_merge(model: ITuningForCaptioning) -> None:
    lora = get_peft_model(model, lora_config())
    lora.merge_adapter()
    lora.unmerge_adapter()  # leaves rounding errors
    lora.unload()


def delete_lora(model: ITuningForCaptioning) -> None:
    model.add_adapter(lora_config())
    model.delete_adapter("default")  # leaves names with "base_layer"


def compile_encoder(model: ITuningForCaptioning) -> None:
    model.vision_model = torch.compile(model.vision_model, backend="eager")


def compile_adapters(model: ITuningForCaptioning) -> None:
    for layer in model.text_model.transformer.h:
        layer.adapter = torch.compile(layer.adapter, backend="eager")


def convert(*dtypes: torch.dtype) -> Callable[[ITuningForCaptioning], None]:
    def change(model: ITuningForCaptioning) -> None:
        for dtype in dtypes:
            model.vision_model.to(dtype)
            model.text_model.to(dtype)

    return change


NO_CHANGES = [
    undo_merge,
    delete_lora,
    compile_encoder,
    compile_adapters,
    convert(torch.bfloat16, torch.float32),
    convert(torch.float16, torch.bfloat16),
    convert(torch.bfloat16, torch.float16, torch.float32),
    convert(torch.float64),
]


@pytest.mark.parametrize("change", NO_CHANGES)
def test_what_is_not_a_change_is_saved(captioner, tmp_path: Path, change: Any):
    change(captioner)
    captioner.save_pretrained(tmp_path)
    weights = {key.replace("_orig_mod.", ""): x for key, x in captioner.adapter_state_dict().items()}
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), weights, rtol=0, atol=0)


def test_gathered_weights_are_compared_instead_of_the_models(captioner, tmp_path: Path):
    gathered = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    for p in captioner.parameters():
        p.data = torch.empty(0)  # as in DeepSpeed's third stage
    captioner.save_pretrained(tmp_path / "saved", state_dict=gathered)
    assert len(load_file(tmp_path / "saved/model.safetensors")) == len(captioner.adapter_state_dict())
    with pytest.raises(CaptionerError, match="state_dict lacks 32 of the adapter's weights"):
        captioner.save_pretrained(tmp_path / "refused", state_dict={})
    gathered["text_model.transformer.h.0.ln_1.bias"] += 1e-3
    with pytest.raises(CaptionerError, match=r"h\.0\.ln_1\.bias differs"):
        captioner.save_pretrained(tmp_path / "refused", state_dict=gathered)


def test_backbones_in_another_cache_are_compared(captioner, saved: Path, backbones, tmp_path: Path):
    cache = tmp_path / "cache"
    for part in ("vision", "text"):
        put_in_hub_cache(cache, f"org/{part}", "a" * 40, backbones[part])
    names = {f"{part}_model_name_or_path": f"org/{part}" for part in ("vision", "text")}
    loaded = ITuningForCaptioning.from_pretrained(saved, cache_dir=cache, **names)
    loaded.save_pretrained(tmp_path / "again")
    train_text_model(loaded)
    with pytest.raises(CaptionerError, match="text model in memory is not the one at 'org/text'"):
        loaded.save_pretrained(tmp_path / "refused")


def test_a_backbone_that_cannot_be_saved_is_refused(captioner, saved: Path, tmp_path: Path):
    without = ITuningForCaptioning.from_pretrained(saved, load_vision_model=False)
    quantized = ITuningForCaptioning.from_pretrained(saved)
    quantize_frozen_weights(quantized)
    refused = [
        (captioner, "decoder", "part is 'decoder', expected 'vision' or 'text'"),
        (without, "vision", "vision model cannot be saved: it is not in memory"),
        (quantized, "text", "text model cannot be saved: it was quantized"),
        (cpu_offload(captioner, torch.device("cpu")), "text", "cannot be saved: it is not in memory"),
    ]
    for model, part, message in refused:
        with pytest.raises(CaptionerError, match=message):
            model.save_backbone(part, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_lora_of_add_adapter_is_saved_as_in_transformers(captioner, saved: Path, tmp_path: Path):
    captioner.add_adapter(lora_config())
    captioner.save_pretrained(tmp_path / "lora")
    assert not (tmp_path / "lora/model.safetensors").exists()
    loaded = ITuningForCaptioning.from_pretrained(saved)
    loaded.load_adapter(tmp_path / "lora")
    torch.testing.assert_close(logits_of(loaded), logits_of(captioner), rtol=0, atol=0)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    other = GPT2LMHeadModel.from_pretrained(folder)
    reinitialise(other)
    other.save_pretrained(folder)


@pytest.mark.parametrize("change", [remove, replace])
def test_a_captioner_is_saved_although_its_backbones_files_have_changed(
    own_backbones: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any
):
    model = make_captioner(own_backbones)
    change(own_backbones["text"])
    model.save_pretrained(tmp_path / "captioner")
    assert "text model could not be compared with its files" in caplog.text
    adapter = load_file(tmp_path / "captioner/model.safetensors")
    assert all(torch.equal(adapter[name], tensor) for name, tensor in model.adapter_state_dict().items())
