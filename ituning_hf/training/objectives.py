"""What an optimizer step minimizes: cross-entropy, or the negative CIDEr of generated captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import caption_rows
from ..data.columns import CaptionedImages
from ..data.dataset import CaptionItem, Collator
from ..data.stream import ShardStream
from ..evaluation.metrics import CIDER_NEEDS_IMAGES
from ..inference.captioning import decode_captions, evaluation_mode
from ..utils.errors import UserError
from .data import Batches, count_label_tokens


class StepShare(NamedTuple):
    """A micro-batch's share of an optimizer step.

    Args:
        inputs: The captioner's arguments, with which its loss is the share of the step's loss.
        metrics: The shares of the means that `metric_names` names.
    """

    inputs: dict[str, Any]
    metrics: list[float]


class CrossEntropy:
    """The mean cross-entropy of the reference captions' tokens."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, batches: Batches) -> None:
        self.collate = Collator(batches.inputs(), batches.processor)
        self.label_smoothing = batches.args.label_smoothing

    def count(self, batches: Sequence[dict[str, Any]]) -> list[int]:
        """Return the number of label tokens in micro-batches."""
        return [int(sum(map(count_label_tokens, batches)))]

    def share(self, batch: dict[str, Any], counts: Sequence[int], place: Sequence[int]) -> StepShare:
        """Return the share of a micro-batch in a step, whose `count` over all processes is `counts`."""
        options = {"num_items_in_batch": counts[0], "label_smoothing": self.label_smoothing}
        return StepShare(batch | options, [])


class SelfCritical:
    r"""Self-critical sequence training on CIDEr-D (Rennie et al. 2017, https://arxiv.org/abs/1612.00563).

    $$ \frac{1 - w}{S} \sum_{i,j} (b_{ij} - r_{ij}) \log p(c_{ij} \mid x_i) + w L $$

    $c_{ij}$ is caption j of the k generated for image $x_i$, and $r_{ij}$ its CIDEr-D. The baseline $b_{ij}$
    is the mean reward of the image's other captions or the reward of its greedy caption. S is the number of
    generated captions in the optimizer step, L the cross-entropy of the references, and w its weight.

    With `sampling="beams"`, the captions are the k beams of a beam search, as in Cornia et al. 2020
    (https://arxiv.org/abs/1912.08226). With "random", they are samples of the captioner's probabilities.
    Then the gradient of the first term is, without dropout, an unbiased estimate of that of the mean CIDEr-D,
    times w - 1. It would not be if the sum were divided by the number of tokens instead of captions. The
    random numbers of an image depend on the seed, the step and its position in the step alone.
    """

    metric_names = ("reward", "sample_length")  # CIDEr-D, and tokens with EOS

    def __init__(self, batches: Batches, captioner: ITuningForCaptioning, train: CaptionedImages) -> None:
        from .cider import CiderReward  # of an optional extra

        self.args, self.accelerator = batches.args, batches.accelerator
        self.captioner, self.processor = captioner, batches.processor
        self.collate = _IndexedCollator(batches.inputs(), batches.processor)
        self.reward = CiderReward(train.dataset.select_columns("captions")[:]["captions"])
        tokenizer = batches.processor.tokenizer
        self.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.args.max_caption_tokens - 1,  # without the BOS token
        )

    def count(self, batches: Sequence[dict[str, Any]]) -> list[int]:
        """Return the number of label tokens in micro-batches, and of captions to generate."""
        tokens = int(sum(map(count_label_tokens, batches)))
        images = sum(index is not None for batch in batches for index in batch["indices"])
        return [tokens, images * self.args.num_samples]

    def share(self, batch: dict[str, Any], counts: Sequence[int], place: Sequence[int]) -> StepShare:
        """Generate captions of a micro-batch, and return its share in a step.

        An image's rows are the generated captions and then its references. There are no rows for an image
        that pads the batch, could not be read or has no captions.

        Args:
            batch: The micro-batch of B images.
            counts: `count` of the step over all processes.
            place: The seed, the step, and the position of the first image in the step.
        """
        num_tokens, num_samples = counts
        k, weight = self.args.num_samples, self.args.cross_entropy_weight
        features = self._encode(batch)  # (B, N, d_v)
        samples = self._sample(features, place)
        rows: list[list[list[int]]] = []
        weights: list[list[float]] = []
        sums = np.zeros(2)
        for index, sampled, references in zip(batch["indices"], samples, batch["captions"], strict=True):
            if index is None:
                rows.append([])
                weights.append([])
                continue
            rewards = self._rewards(index, sampled)
            baseline = rewards[k] if self.args.baseline == "greedy" else (rewards.sum() - rewards) / (k - 1)
            kept = references if weight else []
            rows.append([*sampled[:k], *kept])
            weights.append(
                [*((1 - weight) / num_samples * (rewards[:k] - baseline)), *[weight / num_tokens] * len(kept)]
            )
            sums += rewards[:k].sum(), sum(len(tokens) - 1 for tokens in sampled[:k])
        inputs = self._tensors(rows, weights) | {"visual_features": features, "num_items_in_batch": 1}
        return StepShare(inputs, (sums / num_samples).tolist())

    def _encode(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the images' features, (B, N, d_v), for both sampling and training."""
        if "visual_features" in batch:
            return batch["visual_features"]
        with self.accelerator.autocast():
            return self.captioner.get_image_features(batch["pixel_values"])

    def _sample(self, features: torch.Tensor, place: Sequence[int]) -> list[list[list[int]]]:
        """Return the tokens of each image's k captions, and of its greedy caption if that is the baseline."""
        k, end = self.args.num_samples, self.generation_config.eos_token_id
        if self.args.sampling == "beams":
            options: dict[str, Any] = {"num_beams": k, "num_return_sequences": k}
        else:
            options = self._random_choices(features, place)
        own = self.captioner.generation_config  # with a repetition penalty, it would be another policy
        self.captioner.generation_config = self.generation_config
        with evaluation_mode(self.captioner), self.accelerator.autocast():
            ids = self.captioner.generate(visual_features=features, **options)
        self.captioner.generation_config = own
        rows = [row[: row.index(end, 1) + 1] if end in row[1:] else row for row in ids.tolist()]
        per_image = len(rows) // len(features)
        return [rows[i : i + per_image] for i in range(0, len(rows), per_image)]

    def _random_choices(self, features: torch.Tensor, place: Sequence[int]) -> dict[str, Any]:
        """Return the arguments with which `generate` samples captions of each image."""
        seed, step, first = place
        shape = self.args.num_samples, self.generation_config.max_new_tokens
        generators = [np.random.default_rng([seed, step, first + i]) for i in range(len(features))]
        uniform = 1 - np.stack([generator.random(shape) for generator in generators])  # (B, k, steps)
        if self.args.baseline == "greedy":
            uniform = np.pad(uniform, ((0, 0), (0, 1), (0, 0)))  # (B, k + 1, steps)
        choice = RandomChoice(
            torch.tensor(uniform, dtype=torch.float32, device=features.device).flatten(0, 1)
        )
        begin = self.generation_config.bos_token_id
        return {
            "input_ids": torch.full((len(choice.uniform), 1), begin, device=features.device),
            "logits_processor": LogitsProcessorList([choice]),
        }

    def _rewards(self, index: int, captions: list[list[int]]) -> np.ndarray:
        texts = decode_captions(self.processor, captions)
        are_complete = [tokens[-1] == self.generation_config.eos_token_id for tokens in captions]
        return np.array(self.reward(index, texts, are_complete))

    def _tensors(self, rows: list[list[list[int]]], weights: list[list[float]]) -> dict[str, torch.Tensor]:
        """Return token ids, mask, labels and their weights, each of shape (B * rows of an image, T)."""
        most = max(1, *map(len, rows))
        tokenizer, device = self.processor.tokenizer, self.accelerator.device
        values = caption_rows(rows, tokenizer.bos_token_id, tokenizer.pad_token_id, most)
        tensors = {name: torch.tensor(value, device=device) for name, value in values.items()}
        padded = [[*row, *[0.0] * (most - len(row))] for row in weights]
        of_rows = torch.tensor(padded, device=device).view(-1, 1)  # (B * rows of an image, 1)
        return tensors | {"label_weights": of_rows.expand_as(tensors["labels"])}


class RandomChoice(LogitsProcessor):
    """Makes a greedy search sample, by the inverse of the cumulative distribution.

    Unlike `do_sample`, it takes the random numbers of each row, which other rows do not change, and needs one
    for a token instead of one for each word of the vocabulary.

    Args:
        uniform: Random numbers above 0 and up to 1 for each new token, of shape (rows, tokens). 0 keeps the
            greedy choice.
    """

    def __init__(self, uniform: torch.Tensor) -> None:
        self.uniform = uniform

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Give each row's choice an infinite score; `scores` has shape (rows, vocab_size)."""
        uniform = self.uniform[:, input_ids.shape[1] - 1, None]  # (rows, 1), after the BOS token
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1)  # (rows, vocab_size)
        sampled = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
        chosen = torch.where(uniform > 0, sampled, scores.argmax(dim=-1, keepdim=True))
        return scores.scatter(1, chosen, torch.inf)


class _IndexedCollator(Collator):
    """Adds each image's captions as token ids, and its index in the dataset, None without captions."""

    def __call__(self, items: Sequence[CaptionItem]) -> dict[str, Any]:
        return super().__call__(items) | {
            "captions": [item["captions"] for item in items],
            "indices": [item["index"] if item["captions"] else None for item in items],
        }


def check_images_for_cider(train: CaptionedImages | ShardStream) -> None:
    """Raise a UserError if the reward cannot be computed: for a stream, or a single image."""
    if isinstance(train, ShardStream):
        raise UserError(
            "--objective cider needs the captions of all images at the start, to count their words, and tar "
            "shards are read during the run: give the images in another format, or stored --features."
        )
    if len(train) == 1:
        raise UserError(
            "--objective cider needs at least 2 images to train on: CIDEr is 0 for a single one, because "
            f"{CIDER_NEEDS_IMAGES}."
        )
