"""Batches of random pictures and random text, of real captions' lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import GPT2Config

from ituning_hf import ITuningConfig

from .sizes import num_image_tokens

# How many of the 4,375 human captions of 875 Flickr8k pictures (Hodosh et al. 2013) have 3 tokens, 4 tokens
# and so on, the begin and the end token not counted; 12.55 on average. Counted with GPT-2's own tokenizer.
# fmt: off
_COUNTS = (
    2, 12, 41, 103, 242, 305, 335, 438, 441, 472, 421, 366, 303, 211, 152, 150, 116, 78,
    59, 31, 30, 13, 18, 9, 6, 5, 6, 1, 1, 2, 1, 2, 0, 1, 0, 2,
)
# fmt: on
MOST_TOKENS = 500  # of a caption: with its begin and end token it must fit into BLIP's 512 places
LENGTHS = dict(enumerate(_COUNTS, start=3))


@dataclass(frozen=True)
class Batch:
    """What a training step is given; the text rows are image-major.

    Args:
        pixel_values: Shape (num_images, 3, image_size, image_size).
        visual_features: Shape (num_images, N, d_v).
        input_ids: Shape (num_images * k, T).
        attention_mask: Shape (num_images * k, T).
        labels: Shape (num_images * k, T), not shifted, -100 where there is none.
    """

    pixel_values: torch.Tensor
    visual_features: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def captions_per_image(self) -> int:
        """How many rows of text belong to each image."""
        return len(self.input_ids) // len(self.pixel_values)

    @property
    def text(self) -> dict[str, torch.Tensor]:
        """The three tensors of text, as keyword arguments."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
        }


def caption_rows(
    text: GPT2Config,
    num_images: int,
    captions_per_image: int,
    seed: int,
    length: int | None = None,
    width: int | None = None,
) -> dict[str, torch.Tensor]:
    """Draw rows of text: begin token, random tokens, end token, then padding with the end token.

    Args:
        text: Whose vocabulary, begin token and end token.
        num_images: How many images.
        captions_per_image: Rows of each.
        seed: Of the lengths and of the tokens.
        length: Tokens of every caption, begin and end token not counted; drawn from `LENGTHS` by default.
        width: Tokens that every row is padded or cut to; those of the longest by default.

    Returns:
        `input_ids`, `attention_mask` and `labels`, as the processor lays captions out.
    """
    dice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = dice.choices([*LENGTHS], [*LENGTHS.values()], k=num_images * captions_per_image)
    lengths = torch.tensor([length] * len(drawn) if length else drawn)[:, None] + 2
    positions = torch.arange(width or int(lengths.max()))
    ids = torch.randint(0, text.vocab_size, (len(drawn), len(positions)), generator=generator)
    ids[:, 0] = text.bos_token_id
    ids[positions >= lengths - 1] = text.eos_token_id
    mask = (positions < lengths).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def random_batch(
    config: ITuningConfig,
    num_images: int,
    captions_per_image: int,
    seed: int,
    device: torch.device | str = "cpu",
    length: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Draw a whole batch for a captioner's configuration.

    Args:
        config: The configuration.
        num_images: How many images.
        captions_per_image: Rows of text of each.
        seed: Of all that is drawn.
        device: Where it is put.
        length: As in `caption_rows`.
        width: As in `caption_rows`.
        dtype: The precision of pictures and features.
    """
    vision = config.vision_config
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(num_images, 3, vision.image_size, vision.image_size, generator=generator)
    features = torch.randn(num_images, num_image_tokens(vision), vision.hidden_size, generator=generator)
    rows = caption_rows(config.text_config, num_images, captions_per_image, seed, length, width)
    images = (pictures.to(device, dtype), features.to(device, dtype))
    return Batch(*images, **{name: rows[name].to(device) for name in rows})
