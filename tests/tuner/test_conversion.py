"""Conversion between captioners and PEFT models: equal logits, equal captions, equal bytes."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import ITUNING, LORA, all_families
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from small_models import ADAPTER, TEXT, VISION, contents, make_captioner
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.tuner.conversion import to_peft

TEXTS = torch.randint(3, 90, (6, 5), generator=torch.Generator().manual_seed(4))  # two for each of 3 images
BEAMS = {"num_beams": 4, "max_new_tokens": 9, "min_new_tokens": 5}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"adapter_layers": [3, 1], "adapter_scale": 0.25, "adapter_dropout": 0.1},
    {
        "adapter_hidden_size": 8,
        "adapter_num_heads": 4,
        "vision_feature_layer": -2,
        "vision_feature_norm": False,
    },
]


def logits_of(captioner: ITuningForCaptioning, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return captioner(pixel_values, TEXTS).logits


def peft_logits_of(model: PeftModel, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TEXTS, visual_features=features).logits


# --- Equal results


@all_families
@pytest.mark.parametrize("options", OPTIONS)
def test_both_give_equal_logits_and_captions(loaded, backbones, pixel_values, options: dict):
    captioner = make_captioner(backbones | {"text": loaded.name_or_path}, **options)
    features = captioner.get_image_features(pixel_values)
    expected = logits_of(captioner, pixel_values)
    captions = captioner.generate(pixel_values=pixel_values, **BEAMS)
    model = to_peft(captioner)
    back = ITuningForCaptioning.from_peft(model, captioner.vision_model)
    assert torch.equal(peft_logits_of(model, features), expected)
    assert torch.equal(logits_of(back, pixel_values), expected)
    generated = model.generate(
        visual_features=features, pad_token_id=captioner.generation_config.pad_token_id, **BEAMS
    )
    assert torch.equal(generated, captions)
    assert torch.equal(back.generate(pixel_values=pixel_values, **BEAMS), captions)
    assert (model.training, back.training) == (False, False)


def test_a_captioner_without_its_encoder_is_converted(backbones, pixel_values, tmp_path: Path):
    captioner = make_captioner(backbones)
    captioner.save_pretrained(tmp_path)
    without = ITuningForCaptioning.from_pretrained(tmp_path, load_vision_model=False)
    features = captioner.get_image_features(pixel_values)
    model = to_peft(without)
    assert torch.equal(peft_logits_of(model, features), logits_of(captioner, pixel_values))
    assert model.peft_config["default"] == to_peft(captioner).peft_config["default"]
    with pytest.raises(TypeError, match="vision_model is a UnloadedVisionModel, expected a CLIPVisionModel"):
        ITuningForCaptioning.from_peft(model, without.vision_model)


@all_families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion_to_an_adapter_and_back_gives_the_same_bytes(
    stock, backbones, pixel_values, tmp_path: Path, dtype: torch.dtype
):
    captioner = make_captioner(
        backbones | {"text": stock.name_or_path}, adapter_layers=[1, 3], adapter_scale=0.25
    )
    for adapter in captioner.adapters().values():
        adapter.to(dtype)
    captioner.save_pretrained(tmp_path / "captioner")
    model = to_peft(captioner)
    assert {p.dtype for p in ITUNING.parameters(model).values()} == {dtype}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float32}
    features = captioner.get_image_features(pixel_values)
    assert torch.equal(peft_logits_of(model, features), logits_of(captioner, pixel_values))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(
        stock,
        tmp_path / "adapter",
        autocast_adapter_dtype=False,
        low_cpu_mem_usage=True,
    )
    for peft_model in (model, loaded):
        back = ITuningForCaptioning.from_peft(peft_model, backbones["vision"])
        back.save_pretrained(tmp_path / "again")
        assert contents(tmp_path / "again") == contents(tmp_path / "captioner")


def frozen_addresses(model: torch.nn.Module) -> set[int]:
    return {p.data_ptr() for name, p in model.named_parameters() if "adapter" not in name}


def test_frozen_weights_are_shared_and_adapters_are_copied(captioner, pixel_values):
    model = to_peft(captioner)
    assert frozen_addresses(model) == frozen_addresses(captioner.text_model)
    expected = logits_of(captioner, pixel_values)
    features = captioner.get_image_features(pixel_values)
    back = ITuningForCaptioning.from_peft(model, captioner.vision_model)
    assert frozen_addresses(back) == frozen_addresses(captioner)
    ITUNING.perturb(model, seed=1)
    changed = peft_logits_of(model, features)
    assert not torch.allclose(changed, expected)
    for untouched in (captioner, back):
        assert torch.equal(logits_of(untouched, pixel_values), expected)
    for parameter in back.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    assert torch.equal(peft_logits_of(model, features), changed)


# --- The backbones


def test_the_encoder_may_be_a_module_a_folder_or_a_full_clip(captioner, backbones, pixel_values):
    model, expected = to_peft(captioner), logits_of(captioner, pixel_values)
    module = CLIPVisionModel.from_pretrained(backbones["vision"])
    for vision in (module, backbones["vision"], str(backbones["vision"]), backbones["clip"]):
        back = ITuningForCaptioning.from_peft(model, vision)
        assert torch.equal(logits_of(back, pixel_values), expected)
        name = getattr(vision, "name_or_path", vision)
        assert back.config.vision_model_name_or_path == str(name)
        assert back.config.vision_model_fingerprint == captioner.config.vision_model_fingerprint


def test_models_built_in_memory_are_converted(pixel_values):
    config = ITuningConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=GPT2Config(**TEXT, vocab_size=97, bos_token_id=96, eos_token_id=96),
        **ADAPTER,
    )
    captioner = ITuningForCaptioning(config).eval()
    model = ITUNING.perturb(to_peft(captioner))
    assert model.peft_config["default"].base_model_name_or_path is None
    back = ITuningForCaptioning.from_peft(model, captioner.vision_model)
    features = captioner.get_image_features(pixel_values)
    assert torch.equal(logits_of(back, pixel_values), peft_logits_of(model, features))
    assert (back.config.text_model_name_or_path, back.config.vision_model_fingerprint) == (None, None)


def other_vision(backbones, folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = CLIPVisionModel.from_pretrained(backbones["vision"]).config
    for name, value in changes.items():
        setattr(config, name, value)
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def test_another_encoder_is_refused(captioner, backbones, gpt2, tmp_path: Path):
    with pytest.raises(ValueError, match=r"The vision model at '.*other' is not the one .* expected"):
        ITuningForCaptioning.from_peft(to_peft(captioner), other_vision(backbones, tmp_path / "other"))
    narrow = other_vision(backbones, tmp_path / "narrow", hidden_size=9)
    with pytest.raises(
        ValueError, match=r"k_proj\.weight is \(21, 15\) torch\.float32, expected floats \(21, 9"
    ):
        ITuningForCaptioning.from_peft(ITUNING.wrap(copy.deepcopy(gpt2)), narrow)
    with pytest.raises(OSError, match=r"nowhere"):
        ITuningForCaptioning.from_peft(to_peft(captioner), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="vision_feature_layer is -5, expected -3 to 2 for an encoder of 2"):
        ITuningForCaptioning.from_peft(ITUNING.wrap(gpt2, vision_feature_layer=-5), backbones["vision"])


def test_the_fingerprint_is_recorded_unless_the_language_model_was_changed(captioner, gpt2):
    expected = captioner.config.text_model_fingerprint
    model = ITUNING.wrap(gpt2)
    model.add_adapter("second", ITUNING.config())
    assert [config.text_model_fingerprint for config in model.peft_config.values()] == [expected] * 2
    gpt2 = model.unload()
    gpt2.transformer.h[2].ln_1.bias.data += 1e-3
    assert ITUNING.wrap(gpt2).peft_config["default"].text_model_fingerprint is None


@pytest.mark.parametrize("source", ["captioner", "language model"])
def test_another_language_model_is_refused(captioner, backbones, gpt2, source: str, tmp_path: Path):
    adapted = to_peft(captioner) if source == "captioner" else ITUNING.wrap(copy.deepcopy(gpt2))
    adapted.save_pretrained(tmp_path / "adapter")
    gpt2.transformer.h[2].ln_1.bias.data += 1e-3
    gpt2.save_pretrained(tmp_path / "other")
    other = GPT2LMHeadModel.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"text model at '.*other' is not the one .* expected"):
        PeftModel.from_pretrained(other, str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "other")  # a checkpoint that cannot be read is not compared
    PeftModel.from_pretrained(other, str(tmp_path / "adapter"))
    model = ITUNING.wrap(GPT2LMHeadModel.from_pretrained(backbones["text"]))
    model.peft_config["default"].text_model_fingerprint = "0" * 32
    with pytest.raises(ValueError, match=r"The text model at '.*text' is not the one this adapter"):
        ITuningForCaptioning.from_peft(model, backbones["vision"])


def test_backbones_that_were_changed_in_memory_are_refused(backbones, gpt2, captioner):
    merged = LORA.wrap(gpt2).merge_and_unload()
    model = ITUNING.wrap(merged)
    message = r"The text model in memory is not the one at '.*text'.* h\.0\.attn\.c_attn\.weight differs"
    with pytest.raises(ValueError, match=message):
        ITuningForCaptioning.from_peft(model, backbones["vision"])
    vision = CLIPVisionModel.from_pretrained(backbones["vision"])
    vision.encoder.layers[1].layer_norm1.weight.data[3] += 1e-2
    with pytest.raises(
        ValueError, match=r"The vision model in memory .*layers\.1\.layer_norm1\.weight differs"
    ):
        ITuningForCaptioning.from_peft(to_peft(captioner), vision)


def test_a_captioner_with_a_changed_language_model_is_refused(captioner, pixel_values, tmp_path: Path):
    merged = get_peft_model(
        captioner, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    ).merge_and_unload()
    with pytest.raises(ValueError, match=r"c_attn\.weight differs.* call model\.save_backbone"):
        to_peft(merged)
    merged.save_backbone("text", tmp_path / "text")
    to_peft(merged).save_pretrained(tmp_path / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    features = merged.get_image_features(pixel_values)
    assert torch.equal(peft_logits_of(model, features), logits_of(merged, pixel_values))


def test_a_captioner_is_converted_although_its_backbones_files_have_changed(
    backbones, pixel_values, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    text = shutil.copytree(backbones["text"], tmp_path / "text")
    captioner = make_captioner(backbones | {"text": text})
    changed = GPT2LMHeadModel.from_pretrained(text)
    changed.transformer.wte.weight.data.zero_()
    changed.save_pretrained(text)
    model = to_peft(captioner)
    assert "text model could not be compared with its files" in caplog.text
    assert model.peft_config["default"].text_model_fingerprint == captioner.config.text_model_fingerprint
    features = captioner.get_image_features(pixel_values)
    assert torch.equal(peft_logits_of(model, features), logits_of(captioner, pixel_values))


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_backbone_without_a_name_gets_the_recorded_source(captioner, kind: str):
    model = to_peft(captioner)
    vision, text = captioner.vision_model, model.get_base_model()
    backbone = {"vision": vision, "text": text}[kind]
    backbone.name_or_path = backbone.config.name_or_path = ""
    back = ITuningForCaptioning.from_peft(model, vision)
    for field in ("name_or_path", "revision", "fingerprint"):
        name = f"{kind}_model_{field}"
        assert getattr(back.config, name) == getattr(captioner.config, name)


# --- PEFT models that cannot be converted


def test_a_model_with_another_head_is_refused(gpt2, backbones):
    for model in (gpt2.transformer, GPT2ForSequenceClassification(gpt2.config)):
        adapted = get_peft_model(model, ITUNING.config(task_type=None))
        with pytest.raises(TypeError, match=f"text_model is a {type(model).__name__}, expected a GPT2LMHead"):
            ITuningForCaptioning.from_peft(adapted, backbones["vision"])


def test_one_of_several_adapters_must_be_named(gpt2, backbones, pixel_values):
    model = ITUNING.wrap(gpt2, adapter="x")
    model.add_adapter("y", ITUNING.config(2, [1]))
    ITUNING.perturb(model, "y", seed=1)
    model.base_model.set_adapter(["x", "y"])
    with pytest.raises(ValueError, match=r"adapters \['x', 'y'\] are active: .* adapter_name=\.\.\."):
        ITuningForCaptioning.from_peft(model, backbones["vision"])
    for name in "yx":
        captioner = ITuningForCaptioning.from_peft(model, backbones["vision"], adapter_name=name)
        model.set_adapter(name)
        features = captioner.get_image_features(pixel_values)
        assert torch.equal(logits_of(captioner, pixel_values), peft_logits_of(model, features))
    with pytest.raises(ValueError, match=r"no I-Tuning adapter 'z'; the adapters are \['x', 'y'\]"):
        ITuningForCaptioning.from_peft(model, backbones["vision"], adapter_name="z")


def test_a_model_without_a_peft_wrapper_is_refused(captioner, gpt2, backbones):
    for model in (captioner, gpt2, inject_adapter_in_model(ITUNING.config(), gpt2)):
        name = type(model).__name__
        with pytest.raises(ValueError, match=rf"{name} is not a PEFT model: pass the result"):
            ITuningForCaptioning.from_peft(model, backbones["vision"])


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
def test_a_lora_beside_the_adapter_is_refused(gpt2, backbones):
    gpt2.add_adapter(LORA.config(), "style")
    with pytest.raises(ValueError, match=r"it has \d+ additional weights .*lora_A.*unload"):
        ITuningForCaptioning.from_peft(ITUNING.wrap(gpt2), backbones["vision"])


def test_a_compiled_language_model_is_converted(captioner, tmp_path: Path):
    expected = {name: tensor.clone() for name, tensor in captioner.adapter_state_dict().items()}
    captioner.text_model = torch.compile(captioner.text_model, backend="eager")
    to_peft(captioner).save_pretrained(tmp_path)
    keys = {
        key.removeprefix("base_model.model.") for key in load_file(tmp_path / "adapter_model.safetensors")
    }
    assert keys == {
        key.removeprefix("text_model.").replace(".adapter.", ".ituning_adapter.") for key in expected
    }
