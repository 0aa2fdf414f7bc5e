"""A PyTorch dataset of captioned images, and the collator for image-major batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from ..captioner.processing_ituning import caption_rows
from .columns import CaptionedImage, CaptionedImages
from .images import UnreadableImageError
from .inputs import ImageInputs
from .sampler import SampleKey


class CaptionItem(TypedDict):
    """One image with its captions."""

    index: int  # the index of the image in the dataset
    image: torch.Tensor | None  # pixels, (3, H, W), or features, (N, d_v); None if padding or unreadable
    captions: list[list[int]]  # the token ids of up to captions_per_image captions
    unreadable: str | None  # why the image could not be read


@dataclass(eq=False, repr=False)
class CaptionDataset(Dataset[CaptionItem]):
    """Images with up to k of their captions, sampled anew in every epoch.

    An item is a pure function of its key and the arguments, so a resumed run gets the same items as an
    uninterrupted one. No global random state is read or changed.
    """

    records: Sequence[CaptionedImage]  # not used for keys that contain theirs
    inputs: ImageInputs  # reads the captioner's input for an image
    processor: Any  # `encode_captions(captions, max_length=...)` returns token ids including BOS and EOS
    captions_per_image: int  # k, the maximum number of captions per image; at least 1
    max_caption_tokens: int  # longer captions are truncated; BOS and EOS count, so at least 3
    seed: int  # of the choice of captions; 0 or more

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> CaptionItem:
        item = CaptionItem(index=key.index, image=None, captions=[], unreadable=None)
        if key.padding:
            return item
        image = key.image or self.records[key.index]
        try:
            item["image"] = self.inputs.read(image, key.epoch, key.index)
        except UnreadableImageError as error:  # one damaged file must not stop a long run
            item["unreadable"] = str(error)
            return item
        item["captions"] = self.processor.encode_captions(
            self._choose_captions(image.captions, key), max_length=self.max_caption_tokens
        )
        return item

    def _choose_captions(self, captions: Sequence[str], key: SampleKey) -> list[str]:
        if len(captions) <= self.captions_per_image:
            return list(captions)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        chosen = rng.choice(len(captions), size=self.captions_per_image, replace=False)
        return [captions[position] for position in chosen]


class Collator:
    """Combines items into an image-major batch with k caption rows per image: the most that an image has.

    Args:
        inputs: The inputs of the dataset.
        processor: Its `tokenizer` has `bos_token_id` and `pad_token_id`.
    """

    def __init__(self, inputs: ImageInputs, processor: Any) -> None:
        self.bos_token_id: int = processor.tokenizer.bos_token_id
        self.pad_token_id: int = processor.tokenizer.pad_token_id
        self.input_name = inputs.name
        self.blank = inputs.blank()

    def __call__(self, items: Sequence[CaptionItem]) -> dict[str, Any]:
        """Batch B items.

        An image with fewer than k captions gets rows that contain only the BOS token, without labels. The
        token is not masked, because the softmax over a fully masked row is undefined.

        Returns:
            `pixel_values` (B, 3, H, W) or `visual_features` (B, N, d_v), zeros for items without an image;
            `input_ids`, `attention_mask` and `labels`, each (B * k, T), padded on the right to the longest
            caption (T >= 2), with labels -100 on padding; and `unreadable`, a list of error messages.
        """
        captions = [item["captions"] for item in items]
        most = max(1, *map(len, captions))
        rows = caption_rows(captions, self.bos_token_id, self.pad_token_id, most)
        images = [self.blank if item["image"] is None else item["image"] for item in items]
        return {
            self.input_name: torch.stack(images),
            **{name: torch.tensor(values) for name, values in rows.items()},
            "unreadable": [text for item in items if (text := item["unreadable"]) is not None],
        }


def over_long_share(
    images: CaptionedImages, processor: Any, max_caption_tokens: int, sample_size: int = 2000
) -> float:
    """Return the share of captions that are longer than `max_caption_tokens`, including BOS and EOS.

    Only the captions of `sample_size` images are tokenized, evenly spaced over the dataset.
    """
    size = min(len(images), sample_size)
    chosen = images.select([i * len(images) // size for i in range(size)])
    captions = [caption for image in chosen for caption in image.captions]
    # One more token than allowed is enough to detect a caption that is too long.
    encoded = processor.encode_captions(captions, max_length=max_caption_tokens + 1)
    return sum(len(ids) > max_caption_tokens for ids in encoded) / max(1, len(encoded))
