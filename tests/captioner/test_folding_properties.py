"""Rows that share an image: any number of them, padded on any side, are as if each had it to itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples
from small_models import IMAGE_SIZE, TEXT, make_captioner

from ituning_hf import ITuningForCaptioning

BEGIN, END, PAD, VOCABULARY = 0, 7, 299, 300


@dataclass
class Case:
    """k rows of text for each image."""

    images: int
    k: int
    layers: list[int]
    implementation: str  # of attention: "eager" or "sdpa"
    side: str  # on which rows are padded
    lengths: list[int]  # the tokens of each row
    seed: int

    def captioner(self, backbones: dict[str, Path]) -> ITuningForCaptioning:
        model = make_captioner(backbones, adapter_layers=self.layers).double()
        model.set_attn_implementation(self.implementation)
        return model

    def pixels(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.images, 3, IMAGE_SIZE, IMAGE_SIZE)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def rows(self) -> list[torch.Tensor]:
        """Each row's tokens, the begin token first."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        rows = [torch.randint(8, VOCABULARY - 1, (length,), generator=generator) for length in self.lengths]
        return [torch.cat([torch.tensor([BEGIN]), row[1:]]) for row in rows]

    def text(self) -> dict[str, torch.Tensor]:
        """The rows, padded to the longest."""
        batch = {
            "input_ids": torch.full((len(self.lengths), max(self.lengths)), PAD),
            "attention_mask": torch.zeros(len(self.lengths), max(self.lengths), dtype=torch.long),
        }
        for i, row in enumerate(self.rows()):
            place = slice(len(row)) if self.side == "right" else slice(-len(row), None)
            batch["input_ids"][i, place] = row
            batch["attention_mask"][i, place] = 1
        return batch


@st.composite
def cases(draw: st.DrawFn, shortest: int = 1) -> Case:
    images, k = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    lengths = st.lists(st.integers(shortest, 9), min_size=images * k, max_size=images * k)
    layers = st.sets(st.integers(0, TEXT["n_layer"] - 1), min_size=1)
    return Case(
        images,
        k,
        sorted(draw(layers)),
        draw(st.sampled_from(["eager", "sdpa"])),
        draw(st.sampled_from(["right", "left"])),
        draw(lengths),
        draw(st.integers(0, 1000)),
    )


@given(case=cases())
@examples(6, 150)
def test_logits_of_rows_that_share_an_image_are_those_of_each_alone(backbones: dict[str, Path], case: Case):
    model, pixels, batch = case.captioner(backbones), case.pixels(), case.text()
    # Transformers' and the adapter's spelt-out attention takes its softmax in single precision.
    tolerance = 1e-11 if case.implementation == "sdpa" else 1e-4
    with torch.no_grad():
        shared = model(pixel_values=pixels, **batch).logits
        repeated = model(pixel_values=pixels.repeat_interleave(case.k, 0), **batch).logits
        torch.testing.assert_close(shared, repeated, rtol=tolerance, atol=tolerance)
        for i, row in enumerate(case.rows()):
            alone = model(pixel_values=pixels[[i // case.k]], input_ids=row[None]).logits[0]
            found = shared[i][batch["attention_mask"][i].bool()]
            torch.testing.assert_close(found, alone, rtol=tolerance, atol=tolerance)


def loss_and_gradients(model: ITuningForCaptioning, **batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


UNEVEN = Case(2, 4, [1, 3], "sdpa", "right", [9, 2, 3, 2, 2, 8, 3, 2], 5)  # so that rows are packed


@given(case=cases(), training=st.booleans(), share=st.floats(0, 1))
@example(case=UNEVEN, training=True, share=1.0)
@examples(6, 150)
def test_loss_and_gradients_of_rows_that_share_an_image_are_the_sums_over_the_rows(
    backbones: dict[str, Path], case: Case, training: bool, share: float
):
    model, pixels, batch = case.captioner(backbones).train(training), case.pixels(), case.text()
    drawn = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(case.seed))
    scored = batch["attention_mask"].bool() & (drawn < share)
    scored &= batch["attention_mask"].cumsum(1) > 1  # what is before a first token is no token
    labels = batch["input_ids"].masked_fill(~scored, -100)
    count = max(1, int(scored.sum()))
    found = loss_and_gradients(model, pixel_values=pixels, labels=labels, **batch)
    repeated = pixels.repeat_interleave(case.k, 0)
    torch.testing.assert_close(
        found, loss_and_gradients(model, pixel_values=repeated, labels=labels, **batch)
    )

    total = {name: torch.zeros_like(value) for name, value in found.items()}
    for i, row in enumerate(case.rows()):
        own = labels[i][batch["attention_mask"][i].bool()][None]
        alone = {"pixel_values": pixels[[i // case.k]], "input_ids": row[None], "labels": own}
        alone |= {"num_items_in_batch": count, "output_hidden_states": True}  # which leaves the row as it is
        for name, value in loss_and_gradients(model, **alone).items():
            total[name] += value
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-6)  # the loss is in single precision
