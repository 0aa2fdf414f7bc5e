"""The encoder families: the properties declared for CLIP, compared with the model."""

from pathlib import Path

import pytest
import torch
from small_models import VISION
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, Siglip2VisionConfig

from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.encoders_ituning import CLIPFamily, UnloadedVisionModel, encoder_family

FAMILY = CLIPFamily()


@pytest.fixture
def encoder(backbones: dict[str, Path]) -> CLIPVisionModel:
    return CLIPVisionModel.from_pretrained(backbones["vision"])


def test_the_family_is_found_by_model_type():
    assert isinstance(encoder_family(CLIPVisionConfig()), CLIPFamily)
    with pytest.raises(
        CaptionerError, match=r"model_type is 'siglip2_vision_model', expected one of \['clip"
    ):
        encoder_family(Siglip2VisionConfig())


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_encode_returns_the_hidden_state_without_gradients(encoder, pixel_values, layer: int):
    expected = encoder(pixel_values, output_hidden_states=True).hidden_states[layer]
    found = FAMILY.encode(encoder, pixel_values, layer)
    assert torch.equal(found, expected)
    assert found.shape == (3, FAMILY.num_tokens(encoder.config, 30, 30), VISION["hidden_size"])
    assert not found.requires_grad


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (3, 30, 30), (0, 3, 30, 30), (2, 1, 30, 30)])
def test_pixels_of_another_shape_are_refused(encoder, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"pixel_values has shape \(.*expected \(num_images, 3, 30, 30\)"):
        FAMILY.encode(encoder, torch.zeros(shape), -1)


@pytest.mark.parametrize("folder", ["vision", "clip"])
def test_loading_reports_nothing_unexpected(backbones, encoder, caplog, folder: str):
    loaded = FAMILY.load(str(backbones[folder]))
    assert not caplog.records
    assert isinstance(loaded, CLIPVisionModel)
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in encoder.state_dict().items())


def test_the_default_image_processor_fits_the_encoder():
    own = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    assert FAMILY.image_processor(CLIPVisionConfig(image_size=30)).to_dict() == own.to_dict()


def test_an_unloaded_encoder_refuses_images(encoder, pixel_values):
    with pytest.raises(ValueError, match="not loaded: pass visual_features"):
        UnloadedVisionModel(encoder.config)(pixel_values)
