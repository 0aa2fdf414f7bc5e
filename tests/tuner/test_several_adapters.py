"""Several adapters on one model: which are active, which are trained, and deletion."""

import copy

import pytest
import torch
from methods import IMAGES, ITUNING, ROWS
from peft import PeftModel, get_peft_model
from torch import nn


def two_adapters(gpt2: nn.Module) -> PeftModel:
    """An adapter "x" in all layers and "y" of another size; "x" is active."""
    model = ITUNING.wrap(gpt2, adapter="x")
    model.add_adapter("y", ITUNING.config(2))
    return ITUNING.perturb(model, "y", seed=1)


def trainable(model: nn.Module) -> set[str]:
    own = {name for adapter in "xyz" for name, p in ITUNING.parameters(model, adapter).items()}
    flags = {name for name, p in model.named_parameters() if p.requires_grad}
    assert flags <= own  # the language model stays frozen
    return {adapter for adapter in "xyz" if flags & set(ITUNING.parameters(model, adapter))}


@pytest.fixture
def alone(loaded):
    """The output of each adapter alone on a model."""
    x = ITUNING.wrap(copy.deepcopy(loaded), adapter="x")
    y = get_peft_model(copy.deepcopy(loaded), ITUNING.config(2), "y").eval()
    return {"x": ITUNING.logits(x), "y": ITUNING.logits(ITUNING.perturb(y, "y", seed=1))}


def test_each_adapter_computes_as_on_a_model_of_its_own(alone, gpt2):
    model = two_adapters(gpt2)
    assert model.active_adapters == ["x"]
    assert torch.equal(ITUNING.logits(model), alone["x"])
    model.set_adapter("y")
    assert model.active_adapters == ["y"]
    assert torch.equal(ITUNING.logits(model), alone["y"])
    model.set_adapter("x")
    assert torch.equal(ITUNING.logits(model), alone["x"])


def test_gradient_flags_follow_the_active_adapter(gpt2):
    model = two_adapters(gpt2)
    assert trainable(model) == {"x"}
    model.set_adapter("y")
    assert trainable(model) == {"y"}
    model.set_adapter("x", inference_mode=True)
    assert trainable(model) == set()
    model.set_requires_grad(["x", "y"])
    assert trainable(model) == {"x", "y"}
    model.set_requires_grad("x", requires_grad=False)
    assert trainable(model) == {"y"}
    model.base_model.set_adapter(["x", "y"])
    assert trainable(model) == {"x", "y"}


@pytest.mark.parametrize("is_trainable", [False, True])
def test_a_loaded_adapter_is_trainable_on_request(gpt2, stock, tmp_path, is_trainable):
    ITUNING.wrap(gpt2, adapter="x").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(stock, tmp_path / "x", "x", is_trainable=is_trainable)
    assert trainable(model) == ({"x"} if is_trainable else set())
    model.load_adapter(tmp_path / "x", "y")  # without a change for the first
    assert trainable(model) == ({"x"} if is_trainable else set())
    model.load_adapter(tmp_path / "x", "z", is_trainable=True)
    assert trainable(model) == ({"x", "z"} if is_trainable else {"z"})


def test_deleting_the_last_adapter_leaves_the_language_model(gpt2, stock):
    model = ITUNING.wrap(gpt2, adapter="x")
    model.delete_adapter("x")
    assert (model.active_adapters, model.peft_config) == ([], {})
    assert torch.equal(ITUNING.logits(model.base_model.model), stock(ROWS).logits)
    model.add_adapter("z", ITUNING.config())
    model.set_adapter("z")
    ITUNING.perturb(model, "z")
    assert not torch.allclose(ITUNING.logits(model), stock(ROWS).logits)


def test_deleting_one_of_several_active_adapters_leaves_the_others_active(alone, gpt2):
    model = two_adapters(gpt2)
    model.base_model.set_adapter(["x", "y"])
    model.delete_adapter("x")
    assert model.active_adapters == ["y"]
    assert list(model.peft_config) == ["y"]
    assert trainable(model) == {"y"}
    assert torch.equal(ITUNING.logits(model), alone["y"])


def test_deleting_from_disjoint_layers_activates_one_adapter_in_all(gpt2, stock):
    """PEFT lets each layer choose its next adapter, and takes the first layer's choice for all of them."""
    model = ITUNING.wrap(gpt2, 2, [0, 1], adapter="x")
    model.add_adapter("y", ITUNING.config(3, [2, 3]))
    ITUNING.perturb(model, "y", seed=1)
    with pytest.warns(UserWarning, match="Setting active adapter to y"):
        model.delete_adapter("x")
    assert model.active_adapters == ["y"]
    only_y = get_peft_model(stock, ITUNING.config(3, [2, 3]), "y").eval()
    assert torch.equal(ITUNING.logits(model), ITUNING.logits(ITUNING.perturb(only_y, "y", seed=1)))


def test_outputs_of_several_active_adapters_are_summed(gpt2):
    model = ITUNING.wrap(gpt2, layers=[3], adapter="x")
    model.add_adapter("y", ITUNING.config(2, [3], vision_feature_norm=False))
    ITUNING.perturb(model, "y", seed=1)
    outputs: list[torch.Tensor] = []
    block = model.get_base_model().transformer.h[3]
    block.register_forward_hook(lambda module, args, output: outputs.append(output))
    for active in ([], ["x"], ["y"], ["x", "y"]):
        model.base_model.set_adapter(active)
        ITUNING.logits(model)
    frozen, x, y, both = outputs
    assert min((x - frozen).abs().max(), (y - frozen).abs().max()) > 0.1
    assert torch.allclose(both - frozen, (x - frozen) + (y - frozen), atol=1e-5)


def test_each_adapter_has_its_own_scale_heads_and_layers(gpt2):
    model = ITUNING.wrap(gpt2, adapter="x")
    model.add_adapter("y", ITUNING.config(2, [-1, 1], adapter_scale=0.5, adapter_num_heads=2))
    blocks = model.get_base_model().transformer.h
    assert [sorted(block.ituning_adapter) for block in blocks] == [["x"], ["x", "y"], ["x"], ["x", "y"]]
    x, y = (blocks[3].ituning_adapter[name] for name in "xy")
    assert (x.num_heads, x.head_dim, x.scale) == (7, 3, 1.0)
    assert (y.num_heads, y.head_dim, y.scale) == (2, 7, 0.5)
    assert model.peft_config["y"].adapter_layers == [1, 3]


def test_adapters_for_different_encoders_cannot_be_active_together(gpt2):
    model = ITUNING.wrap(gpt2, adapter="x")
    model.add_adapter("y", ITUNING.config(vision_hidden_size=9))
    model.set_adapter("y")
    wide = IMAGES[..., :9]
    assert ITUNING.logits(model, visual_features=wide).shape == (4, 6, 300)
    model.base_model.set_adapter(["x", "y"])
    with pytest.raises(ValueError, match=r"visual_features has shape \(2, 10, 9\), expected .*15\)"):
        ITUNING.logits(model, visual_features=wide)
