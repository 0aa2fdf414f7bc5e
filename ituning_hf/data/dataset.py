"""From captioned images to image-major batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from ..captioner.processing_ituning import caption_rows
from .images import UnreadableImageError
from .inputs import ImageInputs
from .records import CaptionedImage
from .sampler import SampleKey


class CaptionProcessor(Protocol):
    """What this module needs of a processor; the tokenizer has `bos_token_id` and `pad_token_id`."""

    tokenizer: Any

    def encode_captions(self, captions: list[str], max_length: int) -> list[list[int]]:
        """Turn captions into token ids: begin token, caption, end token.

        Args:
            captions: Any number of them.
            max_length: Longer ones are cut to so many ids, the end token kept.
        """


class CaptionItem(TypedDict):
    """One image with its captions, as `CaptionDataset` gives it.

    Fields:
        index: Of the image in the data set.
        image: What `ImageInputs.read` gives: pixels, (3, H, W), or features, (N, d_v). None for padding
            and where the image could not be read.
        captions: The token ids of up to captions_per_image captions.
        unreadable: Why the image could not be read, or None.
    """

    index: int
    image: torch.Tensor | None
    captions: list[list[int]]
    unreadable: str | None


class CaptionDataset(Dataset[CaptionItem]):
    """Images with up to k of their captions, chosen anew in every epoch.

    Everything is a pure function of the key and the arguments, so that a resumed run sees what
    the interrupted one would have seen. No global random state is read or changed.

    Args:
        records: The images; the key's index counts in this order.
        inputs: Turns images into numbers.
        processor: Turns captions into numbers.
        captions_per_image: k, the most captions taken of an image.
        max_caption_tokens: Longer captions are cut; begin and end token count.
        seed: Of the choice of captions; 0 or more.

    Raises:
        ValueError: `captions_per_image` is below 1, or `max_caption_tokens` below 3.
    """

    def __init__(
        self,
        records: Sequence[CaptionedImage],
        inputs: ImageInputs,
        processor: CaptionProcessor,
        captions_per_image: int,
        max_caption_tokens: int,
        seed: int,
    ) -> None:
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image must be at least 1, got {captions_per_image}")
        if max_caption_tokens < 3:
            raise ValueError(
                "max_caption_tokens must be at least 3 (begin token, one token, end token), "
                f"got {max_caption_tokens}"
            )
        self.records = records
        self.inputs = inputs
        self.processor = processor
        self.captions_per_image = captions_per_image
        self.max_caption_tokens = max_caption_tokens
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> CaptionItem:
        item = CaptionItem(index=key.index, image=None, captions=[], unreadable=None)
        if key.padding:  # nothing of it counts, so its image is not worth reading
            return item
        try:
            item["image"] = self.inputs.read(self.records[key.index], key.epoch, key.index)
        except UnreadableImageError as error:  # one broken file must not end a long run
            item["unreadable"] = str(error)
            return item
        item["captions"] = self.processor.encode_captions(
            self._choose_captions(key), max_length=self.max_caption_tokens
        )
        return item

    def _choose_captions(self, key: SampleKey) -> list[str]:
        captions = self.records[key.index].captions
        if len(captions) <= self.captions_per_image:
            return list(captions)
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        chosen = rng.choice(len(captions), size=self.captions_per_image, replace=False)
        return [captions[position] for position in chosen]


class Collator:
    """Joins items into an image-major batch of exactly k caption rows per image.

    Args:
        inputs: As the data set has them.
        processor: Gives the begin and padding tokens.
        captions_per_image: k, as the data set has it.
    """

    def __init__(self, inputs: ImageInputs, processor: CaptionProcessor, captions_per_image: int) -> None:
        self.captions_per_image = captions_per_image
        self.bos_token_id: int = processor.tokenizer.bos_token_id
        self.pad_token_id: int = processor.tokenizer.pad_token_id
        self.input_name = inputs.name
        # Asked for beforehand, since all images of a batch may be unreadable.
        self.blank = inputs.blank()

    def __call__(self, items: Sequence[CaptionItem]) -> dict[str, Any]:
        """Batch B items.

        An image with fewer than k captions has rows of nothing but the begin token, which is
        attended to, because a row that attends to nothing has no softmax, but has no label.

        Returns:
            `pixel_values` (B, 3, H, W) or `visual_features` (B, N, d_v), by the name of the inputs,
            zeros where an item has none; `input_ids`, `attention_mask` and `labels`, each (B * k, T),
            padded on the right to the longest caption (T >= 2), labels -100 on padding; and
            `unreadable`, a list of the error texts.
        """
        captions = [item["captions"] for item in items]
        rows = caption_rows(captions, self.bos_token_id, self.pad_token_id, self.captions_per_image)
        images = [self.blank if item["image"] is None else item["image"] for item in items]
        return {
            self.input_name: torch.stack(images),
            **{name: torch.tensor(values) for name, values in rows.items()},
            "unreadable": [text for item in items if (text := item["unreadable"]) is not None],
        }


def count_over_long(
    records: Sequence[CaptionedImage],
    processor: CaptionProcessor,
    max_caption_tokens: int,
    batch_size: int = 1024,
) -> int:
    """Count the captions that training would cut.

    Args:
        records: All of their captions are looked at.
        processor: Its tokenizer decides.
        max_caption_tokens: The limit; begin and end token count.
        batch_size: Captions tokenized at once.
    """
    captions = [caption for record in records for caption in record.captions]
    count = 0
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        # One more token than allowed is enough to see that there are more.
        encoded = processor.encode_captions(batch, max_length=max_caption_tokens + 1)
        count += sum(len(ids) > max_caption_tokens for ids in encoded)
    return count
