"""The decoder families and the adapted layer, compared with the frozen layer of Transformers."""

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.decoders_ituning import AdaptedGPT2Block, GPT2Family, decoder_family

FAMILY = GPT2Family()
ROWS, LENGTH, WIDTH = 3, 7, 22


def run(captioner: ITuningForCaptioning) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a block's output, the gradient of its input, and how many tensors of width 4 d it keeps."""
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        _, output = FAMILY.run_layer(captioner.text_model.transformer.h[1], hidden)
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    return output, gradient, sum(shape[-1:] == (4 * WIDTH,) and len(shape) == 3 for shape in kept)


def test_the_family_is_found_by_model_type():
    assert isinstance(decoder_family(GPT2Config()), GPT2Family)
    with pytest.raises(
        CaptionerError, match=r"model_type is 'mistral', expected one of \['gemma3_text', 'gpt2'"
    ):
        decoder_family(MistralConfig())


UNUSABLE = [
    ("add_cross_attention", True, "add_cross_attention is True, expected False"),
    ("eos_token_id", None, "eos_token_id=None: set it"),
]


@pytest.mark.parametrize(("field", "value", "message"), UNUSABLE)
def test_an_unusable_language_model_is_refused(captioner, field: str, value: bool | None, message: str):
    setattr(captioner.config.text_config, field, value)
    with pytest.raises(CaptionerError, match=message):
        ITuningForCaptioning(captioner.config)


@pytest.mark.parametrize(
    ("tokens", "pad"), [({}, 7), ({"pad_token_id": 3}, 3), ({"eos_token_id": [8, 9]}, 8)]
)
def test_the_padding_token_defaults_to_the_eos_token(tokens: dict, pad: int):
    config = GPT2Config(**{"bos_token_id": 5, "eos_token_id": 7, **tokens})
    found = FAMILY.special_tokens(config)
    assert found == {"bos_token_id": 5, "eos_token_id": config.eos_token_id, "pad_token_id": pad}


def test_the_adapted_layers_are_layers_of_gpt2(captioner):
    layers = FAMILY.layers(captioner.text_model)
    assert all(isinstance(layer, GPT2Block) for layer in layers)
    assert {type(layer) for layer in layers} == {AdaptedGPT2Block}
    assert [FAMILY.layer_index(layer) for layer in layers] == [0, 1, 2, 3]
    assert captioner._no_split_modules >= {"AdaptedGPT2Block"}


def test_a_copy_without_adapters_is_the_frozen_model_and_shares_its_weights(captioner, backbones):
    frozen = GPT2LMHeadModel.from_pretrained(backbones["text"])
    copied = FAMILY.without_adapters(captioner.text_model)
    assert {type(layer) for layer in FAMILY.layers(copied)} == {GPT2Block}
    assert copied.state_dict().keys() == frozen.state_dict().keys()
    ids = torch.arange(1, 13).view(2, 6)
    assert torch.equal(copied(ids).logits, frozen(ids).logits)
    own = dict(captioner.text_model.named_parameters())
    assert all(parameter is own[name] for name, parameter in copied.named_parameters())
    assert sorted(captioner.adapters()) == [0, 1, 2, 3]


def test_training_uses_a_fused_gelu_that_saves_one_tensor(captioner):
    output, gradient, kept = run(captioner)
    trained_output, trained_gradient, kept_in_training = run(captioner.train())
    assert (kept, kept_in_training) == (4, 1)
    torch.testing.assert_close(trained_output, output)
    torch.testing.assert_close(trained_gradient, gradient)


def test_other_activations_are_not_replaced(captioner):
    captioner.train()
    block = captioner.text_model.transformer.h[1]
    block.mlp.act = torch.nn.ReLU()
    x = torch.randn(ROWS, LENGTH, WIDTH)
    normed, output = FAMILY.run_layer(block, x)
    residual = block.attn(block.ln_1(x))[0] + x
    expected = residual + block.mlp.c_proj(F.relu(block.mlp.c_fc(normed)))
    torch.testing.assert_close(output, expected)


def test_a_hook_on_the_feed_forward_network_is_called_in_training(captioner):
    captioner.train()
    mlp = captioner.text_model.transformer.h[1].mlp
    seen = []
    handle = mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    run(captioner)
    assert seen == [(ROWS, LENGTH, WIDTH)]
    handle.remove()
    mlp.forward = lambda x: seen.append("replaced") or torch.zeros_like(x)
    run(captioner)
    assert seen[1:] == ["replaced"]
