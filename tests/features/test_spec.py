import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import IMAGE_SIZE, VISION, edit_json, make_captioner
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from ituning_hf.features.encoder import describe_encoder
from ituning_hf.features.spec import (
    FeatureSpec,
    check_fits,
    check_fits_captioner,
    feature_bytes,
    read_spec,
    write_spec,
)
from ituning_hf.features.store import FeatureStore


@pytest.fixture(scope="module")
def spec(backbones: dict[str, Path]) -> FeatureSpec:
    return describe_encoder(backbones["vision"])


def test_what_an_encoder_is_described_by(spec: FeatureSpec, backbones: dict[str, Path]):
    config = make_captioner(backbones).config
    assert spec.vision_model_name_or_path == config.vision_model_name_or_path
    assert spec.vision_model_fingerprint == config.vision_model_fingerprint
    assert spec.vision_config == json.loads(json.dumps(config.to_dict()["vision_config"]))
    assert (spec.num_tokens, spec.hidden_size) == (10, 15)
    assert spec.bytes_per_image == 10 * 15 * 2
    stored = CLIPImageProcessorPil.from_dict(spec.image_processor)
    assert stored.to_dict() == CLIPImageProcessorPil.from_pretrained(backbones["vision"]).to_dict()


def test_it_comes_back_from_its_file(spec: FeatureSpec, tmp_path: Path):
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec
    assert json.loads((tmp_path / "store.json").read_text()) == asdict(spec)


def test_bytes_of_an_image():
    base = CLIPVisionConfig(hidden_size=768, image_size=224, patch_size=16)
    tokens = (base.image_size // base.patch_size) ** 2 + 1
    assert tokens == 197
    sizes = {storage: feature_bytes(197, 768, storage) for storage in ("bfloat16", "int8", "float32")}
    assert sizes == {"bfloat16": 197 * 768 * 2, "int8": 197 * 772, "float32": 197 * 768 * 4}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 1}', "is damaged .KeyError: 'vision_model_name_or_path'"),
        (
            '{"format_version": 2}',
            "has format_version 2, and this code reads up to 1: .* upgrade the package",
        ),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, problem: str):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        FeatureStore(tmp_path)


def test_a_folder_that_is_no_store(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"is no store of features: it has no store\.json"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"storage": "int8"}, "storage 'bfloat16', not 'int8'"),
        ({"mixed_precision": "bf16"}, "mixed_precision 'no', not 'bf16'"),
        ({"vision_feature_layer": 1}, "vision_feature_layer -1, not 1"),
        ({"vision_model_fingerprint": "0" * 32}, "vision_model_fingerprint '.*', not '0+'"),
    ],
)
def test_what_must_fit(spec: FeatureSpec, change: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=f"the store in here was made otherwise: {problem}[.;]"):
        check_fits(spec, replace(spec, **change), Path("here"))


def test_settings_of_encoder_and_preparation_must_fit(spec: FeatureSpec):
    config = spec.vision_config | {"num_attention_heads": 5}
    preparation = spec.image_processor | {"resample": 2}
    with pytest.raises(
        ValueError,
        match=r"vision_config\.num_attention_heads 3, not 5; image_processor\.resample 3, not 2\.",
    ):
        check_fits(spec, replace(spec, vision_config=config, image_processor=preparation), Path("here"))


def test_what_is_of_no_consequence_fits(spec: FeatureSpec, backbones: dict[str, Path]):
    whole = describe_encoder(backbones["clip"], vision_feature_layer=VISION["num_hidden_layers"])
    assert whole.vision_model_name_or_path != spec.vision_model_name_or_path
    preparation = spec.image_processor | {"image_processor_type": "CLIPImageProcessorOfTomorrow"}
    whole = replace(whole, image_processor=preparation)
    check_fits(spec, whole, Path("here"))
    assert whole.digest() == spec.digest()


def test_each_field_of_encoder_and_preparation_must_fit(spec: FeatureSpec):
    """Literally listed: one that is forgotten lets other numbers into the store."""
    encoder = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"}
    encoder |= {"image_size", "patch_size", "hidden_act", "layer_norm_eps"}
    preparation = {"do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"}
    preparation |= {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"}
    for part, names in (("vision_config", encoder), ("image_processor", preparation)):
        for name in names:
            other = replace(spec, **{part: getattr(spec, part) | {name: 1789}})
            with pytest.raises(ValueError, match=rf"{part}\.{name} .*, not 1789"):
                check_fits(spec, other, Path("here"))
            assert other.digest() != spec.digest()


def test_a_captioner_must_fit(spec: FeatureSpec, backbones: dict[str, Path], tmp_path: Path):
    check_fits_captioner(spec, make_captioner(backbones).config, spec.image_processor, tmp_path)
    check_fits_captioner(
        spec, make_captioner(backbones, vision_feature_layer=2).config, spec.image_processor, tmp_path
    )
    with pytest.raises(
        ValueError, match="not of this captioner's vision encoder: vision_feature_layer -1, not 1"
    ):
        check_fits_captioner(
            spec, make_captioner(backbones, vision_feature_layer=1).config, spec.image_processor, tmp_path
        )


def test_the_same_name_with_other_weights_does_not_fit(
    spec: FeatureSpec, backbones: dict[str, Path], tmp_path: Path
):
    torch.manual_seed(8)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "vision")
    other = make_captioner(backbones | {"vision": tmp_path / "vision"}).config
    other.vision_model_name_or_path = spec.vision_model_name_or_path
    with pytest.raises(ValueError, match=r"vision_model_fingerprint '.*', not '"):
        check_fits_captioner(spec, other, spec.image_processor, tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"storage": "int4"}, "storage is 'int4', expected one of bfloat16, int8, float32"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8', expected one of no, bf16, fp16"),
        ({"vision_feature_layer": 3}, "vision_feature_layer is 3, expected -3 to 2"),
    ],
)
def test_settings_out_of_range(backbones: dict[str, Path], options: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        describe_encoder(backbones["vision"], **options)


def test_a_language_model_is_refused(backbones: dict[str, Path]):
    with pytest.raises(ValueError, match="are not those of a CLIPVisionModel"):
        describe_encoder(backbones["text"])


def test_the_preparation_is_read_from_the_encoder(backbones: dict[str, Path], tmp_path: Path):
    model = CLIPVisionModel.from_pretrained(backbones["vision"])
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 33}).save_pretrained(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    assert describe_encoder(tmp_path).image_processor["size"] == {"shortest_edge": 33}
