"""Invalid calls, models and options are refused, and the model does not change."""

import copy

import pytest
import torch
from methods import DEPTH, IMAGES, ITUNING, ROWS, all_families, ituning_config
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from small_models import VISION, make_captioner
from torch import nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import BaseModelOutput

from ituning_hf.tuner.config import ITuningTunerConfig


@pytest.fixture
def model(gpt2) -> PeftModel:
    return ITUNING.wrap(gpt2)


# --- Calls


@pytest.mark.parametrize("inputs", [{}, {"encoder_hidden_states": IMAGES}])
def test_without_an_image_the_error_names_disable_adapter(model, inputs):
    message = r"visual_features is None: pass .* or .*model\.disable_adapter\(\)"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS, **inputs)
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=ROWS, attention_mask=torch.ones_like(ROWS), max_new_tokens=2, **inputs)


def test_a_misspelt_argument_is_refused(model):
    with pytest.raises(ValueError, match=r"not used by the model: \['visual_feature'\]"):
        model.generate(ROWS, visual_features=IMAGES, visual_feature=IMAGES)


@pytest.mark.parametrize(
    ("image", "shape"),
    [(IMAGES[..., :9], r"\(2, 10, 9\)"), (IMAGES[0], r"\(10, 15\)")],
)
def test_an_image_of_another_shape_is_refused(model, image, shape: str):
    message = rf"visual_features has shape {shape}, expected \(num_images, tokens, 15\)"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS, visual_features=image)


@pytest.mark.parametrize("image", [BaseModelOutput(last_hidden_state=IMAGES), IMAGES.numpy()])
def test_an_image_that_is_not_a_tensor_is_refused(model, image):
    message = rf"visual_features is a {type(image).__name__}, expected a tensor .*last_hidden_state"
    for call in (model, model.generate):
        with pytest.raises(TypeError, match=message):
            call(input_ids=ROWS, visual_features=image)


def test_rows_must_be_divisible_by_images(model):
    images = IMAGES[[0, 1, 0]]
    message = "input_ids has 4 rows for 3 images"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS, visual_features=images)
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=torch.zeros(4, 2, 22), visual_features=images)
    with pytest.raises(ValueError, match=message):  # although twelve beams could be divided
        model.generate(ROWS, visual_features=images, num_beams=3, max_new_tokens=2)


def test_classifier_free_guidance_is_refused(model):
    with pytest.raises(ValueError, match=r"guidance_scale=1\.5 is not supported"):
        model.generate(ROWS, visual_features=IMAGES, max_new_tokens=2, guidance_scale=1.5)


# --- Models


def test_other_language_models_are_refused(backbones):
    size = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertModel(BertConfig(**size, num_hidden_layers=1, vocab_size=9))
    with pytest.raises(ValueError, match=r"model_type is 'bert', expected one of .*'gpt2'"):
        get_peft_model(bert, ituning_config())
    crossed = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=2, add_cross_attention=True, bos_token_id=0, eos_token_id=0)
    )
    with pytest.raises(ValueError, match="add_cross_attention is True"):
        get_peft_model(crossed, ituning_config())
    two = nn.ModuleList([crossed, copy.deepcopy(crossed)])
    with pytest.raises(ValueError, match="ModuleList contains 2 supported decoders, expected one"):
        get_peft_model(two, ituning_config(task_type=None))
    text = make_captioner(backbones).text_model
    with pytest.raises(ValueError, match=r"layers of class AdaptedGPT2Block.*to_peft\(captioner\)"):
        get_peft_model(text, ituning_config())
    for model in (bert, crossed, text):
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())


@all_families
def test_a_language_model_needs_no_output_layer(text_model):
    model = get_peft_model(text_model.base_model, ituning_config(task_type="FEATURE_EXTRACTION"))
    hidden = model(input_ids=ROWS, visual_features=IMAGES).last_hidden_state
    assert hidden.shape == (4, 6, text_model.config.hidden_size)


def test_a_language_model_may_be_beside_an_encoder(gpt2):
    encoder = CLIPVisionModel(CLIPVisionConfig(**VISION))
    config = ituning_config(task_type=None, text_model_fingerprint="0" * 32)  # with no checkpoint to compare
    model = get_peft_model(nn.ModuleDict({"vision": encoder, "text": gpt2}), config)
    tuned = [
        name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)
    ]
    assert tuned == [f"text.transformer.h.{i}" for i in range(DEPTH)]


# --- Options


def state(model) -> tuple:
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return modules, flags, dict(getattr(model, "peft_config", {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_layers": [4]}, r"adapter_layers contains \[4\], expected integers from -4 to 3"),
        ({"adapter_num_heads": 2}, "adapter_num_heads is 2, which does not divide adapter_hidden_size 21"),
        ({"adapter_dropout": -0.1}, "adapter_dropout is -0.1, expected 0 <= p < 1"),
    ],
)
def test_refused_options_leave_the_model_unchanged(gpt2, options: dict, message: str):
    before = state(gpt2)
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt2, ituning_config(**options))
    with pytest.raises(ValueError, match=message):
        inject_adapter_in_model(ituning_config(**options), gpt2)
    assert state(gpt2) == before
    model = ITUNING.wrap(gpt2, layers=[1])
    before = state(model)
    with pytest.raises(ValueError, match=message):
        model.add_adapter("other", ituning_config(**options))
    assert state(model) == before


@pytest.mark.parametrize("name", ["0", "q_proj", "weight", "transformer"])
def test_a_name_that_is_part_of_weight_names_is_refused(gpt2, name: str):
    before = state(gpt2)
    with pytest.raises(ValueError, match=f"adapter_name is '{name}', which occurs in weight names"):
        get_peft_model(gpt2, ituning_config(), name)
    assert state(gpt2) == before
    with pytest.raises(ValueError, match="which occurs in weight names"):
        ITUNING.wrap(gpt2).add_adapter(name, ituning_config())


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_task_with_another_head_is_refused(task: str):
    with pytest.raises(ValueError, match=rf"task_type is '{task}', expected 'CAUSAL_LM'.*trained nor saved"):
        ituning_config(task_type=task)


@pytest.mark.parametrize("width", [None, 0, -3, 15.0, "15"])
def test_the_vision_hidden_size_is_required(width):
    with pytest.raises(ValueError, match=f"vision_hidden_size is {width!r}, expected a positive integer"):
        ITuningTunerConfig(vision_hidden_size=width)


def test_missing_options_are_taken_from_the_model(gpt2):
    config = ITuningTunerConfig(vision_hidden_size=15, adapter_num_heads=11)
    own = get_peft_model(gpt2, config).peft_config["default"]
    assert (own.adapter_hidden_size, own.adapter_layers) == (11, [0, 1, 2, 3])
    assert (config.adapter_hidden_size, config.adapter_layers) == (None, None)  # usable for another model
    assert own.base_model_name_or_path == gpt2.name_or_path
