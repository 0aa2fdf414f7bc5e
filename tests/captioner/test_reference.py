"""The captioner, against the whole of it written out in float64."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import IGNORE_INDEX, Reference
from small_models import IMAGE_SIZE, make_captioner, randomize_adapters
from torch.nn import functional as F
from transformers import CLIPVisionConfig, GPT2Config

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.tuner.conversion import to_peft

VOCABULARY = 300
STRESS_ROUNDS = 40


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows with padding as a captioner takes them, and without it as the reference does."""

    pixels: torch.Tensor
    padded: dict[str, torch.Tensor]
    rows: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def make(
        cls, images: int, k: int, side: str = "right", seed: int = 1, size: int = IMAGE_SIZE, length: int = 7
    ) -> "Batch":
        draw = torch.Generator().manual_seed(seed)
        rows, padded = [], {"input_ids": [], "attention_mask": [], "labels": []}
        lengths = [2 + (3 * i + seed) % (length - 1) for i in range(images * k)]
        for tokens in lengths:
            ids = torch.randint(0, VOCABULARY, (tokens,), generator=draw)
            labels = ids.clone()
            labels[: 1 + int(torch.randint(0, tokens, (), generator=draw)) // 2] = IGNORE_INDEX
            rows.append((ids, labels))
            filling = max(lengths) - tokens
            place = (filling, 0) if side == "left" else (0, filling)
            padded["input_ids"].append(F.pad(ids, place))
            padded["attention_mask"].append(F.pad(torch.ones_like(ids), place))
            padded["labels"].append(F.pad(labels, place, value=IGNORE_INDEX))
        pixels = torch.randn(images, 3, size, size, generator=draw)
        return cls(pixels, {name: torch.stack(parts) for name, parts in padded.items()}, rows)


def compare(
    model: ITuningForCaptioning, batch: Batch, takes: str, of_loss: float, of_gradients: float, **options: Any
) -> None:
    """Hold the loss and every gradient against the reference; tolerances are relative to the largest."""
    reference = Reference(model.config, model.state_dict())
    memories = [reference.encode(pixels.to(model.dtype)) for pixels in batch.pixels]
    expected = reference.loss(memories, batch.rows, **options)
    gradients = reference.gradients(expected)
    images = batch.pixels if takes == "pixel_values" else torch.stack(memories)
    found = model(**{takes: images.to(model.dtype)}, **batch.padded, **options).loss
    model.zero_grad()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=of_loss)
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = float((own[name].double() - gradient).abs().max())
        assert difference <= of_gradients * largest, (name, difference, largest)


# Each way through the code, once in float64 and once in float32.
FORMS = {
    "pixels": {},
    "features": {"takes": "visual_features"},
    # Of features: Transformers' CLIP computes this softmax in fp32, also in a model of float64.
    "eager": {"attn_implementation": "eager", "takes": "visual_features"},
    "left padding": {"side": "left"},
    "lower layers dropped": {"adapter_layers": [1, 3]},
    "the layer before the last": {"vision_feature_layer": -2},
    "another scale": {"adapter_scale": 0.37},
    "one caption": {"k": 1},
    "five captions, smoothed, of a larger step": {"k": 5, "num_items_in_batch": 97, "label_smoothing": 0.3},
    "evaluation": {"training": False},
    "recomputed": {"checkpointing": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_the_references(backbones: dict[str, Path], form: str):
    options: dict[str, Any] = {"takes": "pixel_values", "side": "right", "k": 2} | FORMS[form]
    takes, side, k = (options.pop(name) for name in ("takes", "side", "k"))
    training, checkpointing = options.pop("training", True), options.pop("checkpointing", False)
    of_loss = {
        name: options.pop(name) for name in ("num_items_in_batch", "label_smoothing") if name in options
    }
    model, batch = make_captioner(backbones, **options).train(training), Batch.make(3, k, side)
    if checkpointing:
        model.activation_checkpointing_enable()
    compare(model, batch, takes, 2e-6, 2e-5, **of_loss)
    compare(model.double(), batch, takes, 1e-12, 1e-10, **of_loss)


def test_the_other_tests_train_on_packed_rows(backbones: dict[str, Path], monkeypatch):
    from ituning_hf.captioner import modeling_ituning

    packed, pack = [], modeling_ituning.pack_rows

    def watched(*args: Any) -> Any:
        packed.append(pack(*args))
        return packed[-1]

    monkeypatch.setattr(modeling_ituning, "pack_rows", watched)
    for side in ("right", "left"):
        batch = Batch.make(3, 2, side)
        make_captioner(backbones).train()(pixel_values=batch.pixels, **batch.padded)
    assert [rows is not None for rows in packed] == [True, True]


def test_logits_are_the_references(backbones: dict[str, Path]):
    model = make_captioner(backbones, adapter_layers=[0, 2]).double()
    reference, batch = Reference(model.config, model.state_dict()), Batch.make(3, 2)
    inputs = {name: batch.padded[name] for name in ("input_ids", "attention_mask")}
    logits = model(pixel_values=batch.pixels.double(), **inputs).logits
    for row, (ids, _) in enumerate(batch.rows):
        expected = reference.logits(ids, reference.encode(batch.pixels[row // 2]))
        torch.testing.assert_close(logits[row, : len(ids)], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_peft_method_is_the_reference(backbones: dict[str, Path], implementation: str):
    """Transformers computes its loss in fp32, so the logits are compared, and gradients of a loss of ours."""
    model = make_captioner(backbones, adapter_layers=[1, 2, 3], adapter_scale=0.7)
    reference, batch = Reference(model.config, model.state_dict()), Batch.make(3, 2)
    memories = [reference.encode(pixels) for pixels in batch.pixels]
    adapted = to_peft(model).double().eval()  # GPT-2's own dropout is off there
    adapted.set_attn_implementation(implementation)
    for name, p in adapted.named_parameters():
        p.requires_grad_("ituning_adapter" in name)
    inputs = {name: batch.padded[name] for name in ("input_ids", "attention_mask")}
    logits = adapted(**inputs, encoder_hidden_states=torch.stack(memories)).logits
    labels = batch.padded["labels"][:, 1:]
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels)
    expected = reference.loss(memories, batch.rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    found = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    gradients = reference.gradients(expected)
    assert len(found) == len(gradients) == 3 * 8
    for name, gradient in gradients.items():
        _, layer, part = name.replace(".adapter.", ".h.").rsplit(".h.", 2)
        [own] = [
            x for key, x in found.items() if f".h.{layer}." in key and part in key.replace(".default", "")
        ]
        torch.testing.assert_close(own, gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_greedy_captions_are_the_references(backbones: dict[str, Path]):
    model = make_captioner(backbones, adapter_layers=[0, 1, 3]).double()
    reference, batch = Reference(model.config, model.state_dict()), Batch.make(4, 1)
    ids = model.generate(pixel_values=batch.pixels.double(), num_beams=1, max_new_tokens=9)
    expected = [reference.greedy(reference.encode(pixels), 9) for pixels in batch.pixels]
    assert len({tuple(row) for row in expected}) > 1
    for row, caption in zip(ids.tolist(), expected, strict=True):
        assert row[: len(caption)] == caption
        assert set(row[len(caption) :]) <= {model.config.text_config.eos_token_id}


@pytest.mark.stress
def test_random_shapes_are_the_references():
    for seed in range(STRESS_ROUNDS):
        draw = torch.Generator().manual_seed(seed)

        def pick(*values: int, draw: torch.Generator = draw) -> int:
            return values[int(torch.randint(0, len(values), (), generator=draw))]

        heads, side = pick(1, 2, 3), pick(5, 7, 10)
        vision = CLIPVisionConfig(
            hidden_size=heads * pick(5, 7),
            intermediate_size=pick(11, 23),
            num_hidden_layers=pick(1, 2, 3),
            num_attention_heads=heads,
            image_size=side * pick(1, 2, 3),
            patch_size=side,
        )
        text_heads, layers, adapter_heads = pick(1, 2, 3), pick(1, 2, 3, 4), pick(1, 2, 5)
        text = GPT2Config(
            n_embd=text_heads * pick(4, 8, 11),
            n_layer=layers,
            n_head=text_heads,
            n_positions=32,
            vocab_size=VOCABULARY,
            bos_token_id=VOCABULARY - 1,
            eos_token_id=VOCABULARY - 1,
        )
        config = ITuningConfig(
            vision_config=vision,
            text_config=text,
            adapter_hidden_size=adapter_heads * pick(1, 3, 4),
            adapter_num_heads=adapter_heads,
            adapter_layers=sorted(torch.randperm(layers, generator=draw)[: pick(1, layers)].tolist()),
            adapter_scale=pick(1, 2, 3) / 2,
            vision_feature_layer=-pick(1, 2),
        )
        torch.manual_seed(seed)
        model = randomize_adapters(ITuningForCaptioning(config), seed).train().double()
        takes = ("pixel_values", "visual_features")[pick(0, 1)]
        if takes == "visual_features":
            model.set_attn_implementation(("sdpa", "eager")[pick(0, 1)])
        batch = Batch.make(
            pick(1, 2, 3),
            pick(1, 2, 5),
            ("right", "left")[pick(0, 1)],
            seed,
            vision.image_size,
            pick(3, 6, 11),
        )
        compare(model, batch, takes, 1e-12, 1e-10, label_smoothing=pick(0, 1) / 10)
