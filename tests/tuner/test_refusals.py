"""What the PEFT method refuses, and that a refusal leaves the model unchanged."""

import pytest
import torch
from methods import IMAGES, ITUNING, ROWS, ituning_config
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from transformers.modeling_outputs import BaseModelOutput

from ituning_hf.tuner.config import ITuningTunerConfig


@pytest.fixture
def model(gpt2) -> PeftModel:
    return ITUNING.wrap(gpt2)


# --- Calls


def test_without_an_image_it_says_how_to_run_the_language_model_alone(model):
    message = (
        r"encoder_hidden_states is None: give .* \(num_images, tokens, vision_hidden_size\), or .*disable"
    )
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS)
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=ROWS, attention_mask=torch.ones_like(ROWS), max_new_tokens=2)


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (IMAGES[..., :9], r"\(2, 10, 9\)"),
        (IMAGES[0], r"\(10, 15\)"),
        (IMAGES[None], r"\(1, 2, 10, 15\)"),
        (IMAGES[:, :0], r"\(2, 0, 15\)"),
    ],
)
def test_an_image_of_another_shape_is_refused(model, image, shape: str):
    message = rf"encoder_hidden_states has shape {shape}, expected \(num_images, tokens, 15\)"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS, encoder_hidden_states=image)


@pytest.mark.parametrize("image", [BaseModelOutput(last_hidden_state=IMAGES), IMAGES.numpy()])
def test_an_image_that_is_no_tensor_is_refused(model, image):
    message = rf"encoder_hidden_states is a {type(image).__name__}, expected a tensor .*last_hidden_state"
    for call in (model, model.generate):
        with pytest.raises(TypeError, match=message):
            call(input_ids=ROWS, encoder_hidden_states=image)


def test_rows_must_be_divisible_among_the_images(model):
    images = IMAGES[[0, 1, 0]]
    message = "input_ids has 4 rows for 3 images"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ROWS, encoder_hidden_states=images)
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=torch.zeros(4, 2, 22), encoder_hidden_states=images)
    with pytest.raises(ValueError, match=message):
        # Twelve rows for three images: that the beams make them divisible must not hide it.
        model.generate(ROWS, encoder_hidden_states=images, num_beams=3, max_new_tokens=2)


def test_a_mask_over_the_image_is_refused(model):
    with pytest.raises(ValueError, match="encoder_attention_mask is not supported"):
        model(input_ids=ROWS, encoder_hidden_states=IMAGES, encoder_attention_mask=torch.ones(2, 10))


def test_another_adapter_for_each_row_is_refused(model):
    names = ["default"] * 4
    with pytest.raises(NotImplementedError, match=r"adapter_names .* not supported by the method 'ituning'"):
        model(input_ids=ROWS, encoder_hidden_states=IMAGES, adapter_names=names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 is not supported"),
        ({"generation_config": GenerationConfig(guidance_scale=2.0)}, "guidance_scale=2.0 is not supported"),
        ({"assistant_model": nn.Identity()}, "assistant_model is not supported"),
    ],
)
def test_generating_without_the_image_is_refused(model, options: dict, message: str):
    with pytest.raises(NotImplementedError, match=message):
        model.generate(input_ids=ROWS, encoder_hidden_states=IMAGES, max_new_tokens=2, **options)


# --- Models


def test_models_that_are_no_gpt2_are_refused():
    size = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertModel(BertConfig(**size, num_hidden_layers=1, vocab_size=9))
    with pytest.raises(ValueError, match=r"BertModel contains 0 supported decoders.*gpt2"):
        get_peft_model(bert, ituning_config())
    assert not any(isinstance(module, BaseTunerLayer) for module in bert.modules())


def test_a_gpt2_with_cross_attention_is_refused():
    crossed = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, add_cross_attention=True)
    )
    with pytest.raises(ValueError, match="add_cross_attention is True"):
        get_peft_model(crossed, ituning_config())


def test_a_gpt2_without_its_output_layer_will_do(gpt2):
    bare = gpt2.transformer
    assert isinstance(bare, GPT2Model)
    model = get_peft_model(bare, ituning_config(task_type="FEATURE_EXTRACTION"))
    ITUNING.perturb(model)
    hidden = model(input_ids=ROWS, encoder_hidden_states=IMAGES).last_hidden_state
    assert hidden.shape == (4, 6, 22)


def test_a_gpt2_inside_another_module_will_do(gpt2):
    config = ituning_config(task_type=None, text_model_fingerprint="0" * 32)  # it has no place to compare
    model = get_peft_model(nn.ModuleDict({"text": gpt2}), config)
    assert isinstance(model.get_base_model()["text"].transformer.h[0], BaseTunerLayer)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_task_whose_head_would_be_lost_is_refused(backbones, task: str):
    """LoRA trains and saves the head as well, and ours has no option for that."""
    classifier = GPT2ForSequenceClassification.from_pretrained(backbones["text"], pad_token_id=0)
    with pytest.raises(
        ValueError, match=rf"task_type is '{task}', expected 'CAUSAL_LM'.*neither trained nor saved"
    ):
        get_peft_model(classifier, ituning_config(task_type=task))
    assert not any(isinstance(module, BaseTunerLayer) for module in classifier.modules())


# --- Options

BAD_OPTIONS = [
    ({"adapter_layers": [4]}, r"adapter_layers contains \[4\], expected integers from -4 to 3"),
    ({"adapter_layers": []}, "adapter_layers is empty"),
    ({"adapter_layers": [1, -3]}, r"names a layer twice"),
    ({"adapter_layers": "1"}, "adapter_layers is '1', expected a list"),
    (
        {"adapter_hidden_size": 20},
        r"adapter_num_heads is 7, which does not divide adapter_hidden_size 20",
    ),
    ({"adapter_hidden_size": 0}, "adapter_hidden_size is 0, expected a positive integer"),
    (
        {"adapter_num_heads": None},
        r"adapter_num_heads is 2, which does not divide adapter_hidden_size 21",
    ),
    ({"adapter_dropout": -0.1}, "adapter_dropout is -0.1, expected 0 <= p < 1"),
    ({"adapter_scale": float("nan")}, "adapter_scale is nan, expected a finite number"),
]
BAD_NAMES = ["", "a.b", "keys", "training", "q_proj", "weight", "transformer", "0", "ituning_adapter"]


def state(model) -> tuple:
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return modules, flags, dict(getattr(model, "peft_config", {}))


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_change_nothing(gpt2, options: dict, message: str):
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


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained in the prefix:UserWarning")
def test_names_that_would_mix_adapters_up_are_refused(gpt2, name: str):
    before = state(gpt2)
    with pytest.raises(ValueError, match=f"adapter_name is {name!r}"):
        get_peft_model(gpt2, ituning_config(), name)
    assert state(gpt2) == before
    model = ITUNING.wrap(gpt2)
    before = state(model)
    with pytest.raises(ValueError, match="adapter_name is"):
        model.add_adapter(name, ituning_config())
    assert state(model) == before


@pytest.mark.parametrize("width", [None, 0, -3, 15.0, True, "15"])
def test_the_images_width_must_be_given(width):
    with pytest.raises(ValueError, match=f"vision_hidden_size is {width!r}, expected a positive integer"):
        ITuningTunerConfig(vision_hidden_size=width)
    with pytest.raises(ValueError, match="vision_hidden_size is None"):
        ITuningTunerConfig()


def test_open_options_are_taken_from_the_model(gpt2):
    config = ITuningTunerConfig(vision_hidden_size=15, adapter_num_heads=11)
    own = get_peft_model(gpt2, config).peft_config["default"]
    assert (own.adapter_hidden_size, own.adapter_layers) == (11, [0, 1, 2, 3])
    assert (config.adapter_hidden_size, config.adapter_layers) == (None, None)  # free for another model
    assert own.base_model_name_or_path == gpt2.name_or_path
