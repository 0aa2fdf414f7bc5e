"""The captioner and the PEFT method, compared with the reference implementation in float64."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from reference import IGNORE_INDEX, Reference
from small_models import make_batch, make_captioner, randomize_adapters
from torch.nn import functional as F
from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.tuner.conversion import to_peft

Batch = dict[str, torch.Tensor]
# Relative tolerances of the loss, and of gradients to the largest one. Kernels differ between CPUs.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-10)}


def without_padding(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each row's tokens and labels."""
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    return [(ids[mask], labels[mask]) for ids, labels, mask in rows]


def compare(
    model: ITuningForCaptioning,
    batch: Batch,
    dtypes: Iterable[torch.dtype] = (torch.float64,),
    takes_features: bool = False,
    **options: Any,
) -> None:
    """Compare the loss and all gradients with the reference, in each dtype."""
    reference = Reference(model.config, model.state_dict())
    memories = [reference.encode(pixels) for pixels in batch["pixel_values"]]
    expected = reference.loss(memories, without_padding(batch), **options)
    gradients = reference.gradients(expected)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    text = dict(batch)
    given = {"pixel_values": text.pop("pixel_values")}
    if takes_features:
        given = {"visual_features": torch.stack(memories)}
    for dtype in dtypes:
        images = {name: tensor.to(dtype) for name, tensor in given.items()}
        model.to(dtype).zero_grad()
        loss = model(**images, **text, **options).loss
        loss.backward()
        of_loss, of_gradients = TOLERANCES[dtype]
        assert loss.item() == pytest.approx(expected.item(), rel=of_loss)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            difference = float((found[name].double() - gradient).abs().max())
            assert difference <= of_gradients * largest, (name, difference, largest)


# Each code path, in float64 and in float32.
FORMS = {
    "pixels": {},
    "features": {"takes_features": True},
    # With features, because CLIP computes this softmax in fp32 even in a float64 model.
    "eager": {"attn_implementation": "eager", "takes_features": True},
    "left padding": {"side": "left"},
    "lower layers dropped": {"adapter_layers": [1, 3]},
    "the layer before the last": {"vision_feature_layer": -2},
    "image tokens that are not normalized": {"vision_feature_norm": False},
    "another scale": {"adapter_scale": 0.37},
    "one caption": {"k": 1},
    "five captions, smoothed, of a larger step": {"k": 5, "num_items_in_batch": 97, "label_smoothing": 0.3},
    "evaluation": {"training": False},
    "recomputed": {"checkpointing": True},
    "no label": {"labelled": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_match_the_reference(backbones: dict[str, Path], form: str):
    options: dict[str, Any] = {"side": "right", "k": 2, "training": True} | FORMS[form]
    side, k, training = (options.pop(name) for name in ("side", "k", "training"))
    checkpointing, labelled = options.pop("checkpointing", False), options.pop("labelled", True)
    names = ("takes_features", "num_items_in_batch", "label_smoothing")
    of_call = {name: options.pop(name) for name in names if name in options}
    model, batch = make_captioner(backbones, **options).train(training), make_batch(3, k, side)
    if checkpointing:
        model.activation_checkpointing_enable()
    if not labelled:
        batch["labels"].fill_(IGNORE_INDEX)
    compare(model, batch, TOLERANCES, **of_call)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ITuningForCaptioning, Batch]:
    """A captioner of arbitrary sizes, and a batch of arbitrary rows and labels."""

    def pick(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    heads, text_heads, adapter_heads = pick(1, 2, 3), pick(1, 2, 3), pick(1, 2, 5)
    layers, patch_size = pick(1, 2, 3, 4), pick(5, 7, 10)
    vision = CLIPVisionConfig(
        hidden_size=heads * pick(5, 7),
        intermediate_size=pick(11, 23),
        num_hidden_layers=pick(1, 2, 3),
        num_attention_heads=heads,
        image_size=patch_size * pick(1, 2, 3),
        patch_size=patch_size,
    )
    tokens = {"vocab_size": 300, "bos_token_id": 299, "eos_token_id": 299}
    text = GPT2Config(
        n_embd=text_heads * pick(4, 8, 11), n_layer=layers, n_head=text_heads, n_positions=32, **tokens
    )
    config = ITuningConfig(
        vision_config=vision,
        text_config=text,
        adapter_hidden_size=adapter_heads * pick(1, 3, 4),
        adapter_num_heads=adapter_heads,
        adapter_layers=draw(st.sets(st.integers(0, layers - 1), min_size=1)),
        adapter_scale=pick(0.5, 1.0, 1.5),
        vision_feature_layer=pick(-1, -2),
        vision_feature_norm=pick(True, False),
    )
    seed, images, k = draw(st.integers(0, 1000)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    torch.manual_seed(seed)
    model = randomize_adapters(ITuningForCaptioning(config), seed).double().train(draw(st.booleans()))
    lengths = draw(st.lists(st.integers(1, 9), min_size=images * k, max_size=images * k))
    batch = make_batch(images, k, pick("right", "left"), seed, lengths)
    batch["pixel_values"] = torch.randn(images, 3, vision.image_size, vision.image_size).double()
    keep = torch.rand(images * k, 1) * 2 - 0.5  # all, some or none of a row's labels
    batch["labels"][torch.rand(batch["labels"].shape) > keep] = IGNORE_INDEX
    return model, batch


@given(
    case=cases(),
    implementation=st.sampled_from(["sdpa", "eager"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
)
@examples(15, 150)
def test_any_captioner_with_any_rows_matches_the_reference(case, implementation: str, label_smoothing: float):
    model, batch = case
    reference = Reference(model.config, model.state_dict())
    memories = [reference.encode(pixels) for pixels in batch["pixel_values"]]
    k = len(batch["labels"]) // len(memories)
    mask = batch["attention_mask"]
    with torch.no_grad():
        found = model(batch["pixel_values"], batch["input_ids"], mask).logits
        repeated = model(batch["pixel_values"].repeat_interleave(k, 0), batch["input_ids"], mask).logits
    torch.testing.assert_close(found, repeated, rtol=1e-11, atol=1e-11)
    for i, (ids, _) in enumerate(without_padding(batch)):
        expected = reference.logits(ids, memories[i // k])
        torch.testing.assert_close(found[i, mask[i].bool()], expected, rtol=1e-11, atol=1e-11)
    model.set_attn_implementation(implementation)
    compare(model, batch, takes_features=True, label_smoothing=label_smoothing)


@pytest.mark.parametrize(("implementation", "norm"), [("sdpa", True), ("eager", False)])
def test_the_peft_method_matches_the_reference(backbones: dict[str, Path], implementation: str, norm: bool):
    """Transformers computes its loss in fp32, so the loss is computed here from the logits."""
    options = {"adapter_layers": [1, 2, 3], "adapter_scale": 0.7, "vision_feature_norm": norm}
    model, batch = make_captioner(backbones, **options), make_batch(k=2)
    reference = Reference(model.config, model.state_dict())
    memories = [reference.encode(pixels) for pixels in batch["pixel_values"]]
    expected = reference.loss(memories, without_padding(batch))
    adapted = to_peft(model).double().eval()  # GPT-2's own dropout is off there
    adapted.set_attn_implementation(implementation)
    for name, p in adapted.named_parameters():
        p.requires_grad_("ituning_adapter" in name)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = adapted(**inputs, visual_features=torch.stack(memories)).logits
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    found = {
        name.replace("base_model.model.", "text_model.").replace("ituning_adapter.default", "adapter"): p.grad
        for name, p in adapted.named_parameters()
        if p.grad is not None
    }
    torch.testing.assert_close(found, reference.gradients(expected), rtol=1e-9, atol=1e-12)


def test_greedy_captions_match_the_reference(backbones: dict[str, Path]):
    model = make_captioner(backbones, adapter_layers=[0, 1, 3]).double()
    reference, pixels = Reference(model.config, model.state_dict()), make_batch(4)["pixel_values"]
    ids = model.generate(pixel_values=pixels.double(), num_beams=1, max_new_tokens=9)
    expected = [reference.greedy(reference.encode(image), 9) for image in pixels]
    assert len({tuple(row) for row in expected}) > 1
    for row, caption in zip(ids.tolist(), expected, strict=True):
        assert row[: len(caption)] == caption
        assert set(row[len(caption) :]) <= {model.config.text_config.eos_token_id}
