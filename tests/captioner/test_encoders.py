"""Every encoder family, compared with the model of Transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_families import ENCODERS, LARGER, SmallFamilies
from small_models import VISION, logits_of, make_captioner
from transformers import PreTrainedModel, Siglip2VisionConfig

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.backbones_ituning import Backbone
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.encoders_ituning import EncoderFamily, UnloadedVisionModel, encoder_family

PREFIX_TOKENS = {"clip": 1, "siglip": 0, "vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 4}
ANY_SIZE = {"dinov2", "dinov2_with_registers"}
WITHOUT_FINAL_NORM = {"clip"}
PATCHES = 9


@pytest.fixture(scope="module", params=ENCODERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(families: SmallFamilies, name: str) -> PreTrainedModel:
    """The encoder, loaded by Transformers."""
    options = {"add_pooling_layer": False} if name in ("vit", "deit") else {}
    return ENCODERS[name][0].from_pretrained(families[name], **options).eval()


@pytest.fixture
def family(encoder: PreTrainedModel) -> EncoderFamily:
    return encoder_family(encoder.config)


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_encode_returns_the_hidden_state_without_gradients(encoder, family, name, pixel_values, layer: int):
    with torch.no_grad():
        output = encoder(pixel_values, output_hidden_states=True)
    last, states = output.last_hidden_state, output.hidden_states
    found = family.encode(encoder, pixel_values, layer)
    assert torch.equal(found, last if layer == -1 else states[layer])
    assert found.shape == (3, PREFIX_TOKENS[name] + PATCHES, VISION["hidden_size"])
    assert found.shape[1] == family.num_tokens(encoder.config, 30, 30)
    assert not found.requires_grad
    assert family.has_final_norm == (name not in WITHOUT_FINAL_NORM)
    assert torch.equal(states[2], last) != family.has_final_norm


def test_the_patches_follow_the_prefix_tokens_row_by_row(encoder, family, name, pixel_values):
    changed = pixel_values.clone()
    changed[:, :, 10:20, 20:] += 1  # the sixth patch
    before, after = (family.encode(encoder, pixels, 0) for pixels in (pixel_values, changed))
    differs = (before != after).any(-1).any(0)
    assert differs.nonzero().flatten().tolist() == [PREFIX_TOKENS[name] + 5]
    assert family.num_prefix_tokens(encoder.config) == PREFIX_TOKENS[name]


SHAPES = [
    ((3, 3, 30, 30), 9),
    ((2, 3, 20, 40), 8),
    ((1, 3, 10, 10), 1),
    ((3, 3, 32, 32), None),
    ((3, 3, 30, 0), None),
    ((3, 30, 30), None),
    ((0, 3, 30, 30), None),
    ((2, 1, 30, 30), None),
]


@pytest.mark.parametrize(("shape", "patches"), SHAPES)
def test_pixels_of_other_shapes_are_refused(
    encoder, family, name, shape: tuple[int, ...], patches: int | None
):
    if patches is not None and (name in ANY_SIZE or shape[2:] == (30, 30)):
        found = family.encode(encoder, torch.ones(shape), -1)
        assert (
            found.shape[1] == family.num_tokens(encoder.config, *shape[2:]) == PREFIX_TOKENS[name] + patches
        )
    else:
        size = "height, width\\) with multiples of 10 pixels" if name in ANY_SIZE else "30, 30"
        message = rf"pixel_values has shape \(.*expected \(num_images, 3, {size}\): prepare images"
        with pytest.raises(ValueError, match=message):
            family.encode(encoder, torch.ones(shape), -1)


def test_the_default_image_processor_fits_the_encoder(encoder, family):
    image = Image.fromarray(np.arange(37 * 53 * 3, dtype=np.uint8).reshape(37, 53, 3))
    pixels = family.image_processor(encoder.config)(image, return_tensors="pt")["pixel_values"]
    assert family.encode(encoder, pixels, -1).isfinite().all()


# --- Loading, alone or from a larger model


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_only_the_encoder_is_loaded_and_nothing_is_reported(families, source: str, caplog, recwarn):
    name = LARGER.get(source, (source,))[0]
    folder, model_class = families[source], ENCODERS[name][0]
    caplog.clear()
    loaded = encoder_family(ENCODERS[name][1]).load(str(folder))
    assert not caplog.records
    assert not recwarn
    assert type(loaded) is model_class
    expected = model_class.from_pretrained(families[name]).state_dict()
    expected = {key: x for key, x in expected.items() if not key.startswith("pooler.")}
    torch.testing.assert_close(dict(loaded.state_dict()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_every_weight_is_compared_with_its_file(families, source: str):
    name = LARGER.get(source, (source,))[0]
    backbone = Backbone("vision", families[source])
    assert backbone.fingerprint() == Backbone("vision", families[name]).fingerprint()
    model = backbone.load()
    for key, parameter in model.named_parameters():
        if key != "embeddings.mask_token":  # used in the encoder's own training only
            backbone.check_unchanged(model)
            parameter.data += 1e-3
            with pytest.raises(CaptionerError, match=r"vision model in memory is not the one at .* differs"):
                backbone.check_unchanged(model)
            parameter.data -= 1e-3


@pytest.mark.parametrize("source", [*ENCODERS, *LARGER])
def test_a_loaded_captioner_equals_the_saved_one(families, source: str, tmp_path: Path):
    model = make_captioner({"vision": families[source], "text": families["llama_tied"]})
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "captioner")
    loaded = ITuningForCaptioning.from_pretrained(tmp_path / "captioner")
    assert torch.equal(logits_of(loaded), expected)
    alone = families[LARGER.get(source, (source,))[0]]
    moved = ITuningForCaptioning.from_pretrained(
        tmp_path / "captioner", vision_model_name_or_path=alone, vision_model=None
    )
    assert torch.equal(logits_of(moved), expected)
    model.save_backbone("vision", tmp_path / "vision")
    assert model.config.vision_model_fingerprint == loaded.config.vision_model_fingerprint


def test_an_unsupported_encoder_is_refused():
    message = r"model_type is 'siglip2_vision_model', expected one of \['clip.*docs/families\.md"
    with pytest.raises(CaptionerError, match=message):
        encoder_family(Siglip2VisionConfig())


def test_an_unloaded_encoder_refuses_images(encoder, pixel_values):
    with pytest.raises(ValueError, match="not loaded: pass visual_features"):
        UnloadedVisionModel(encoder.config)(pixel_values)
