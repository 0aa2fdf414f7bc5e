"""Show which parts of an image the adapters attend to for each word of a caption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..captioner.encoders_ituning import encoder_family
from ..captioner.images_ituning import crop_extreme_aspect
from ..data.images import load_image
from ..utils.errors import UserError
from .captioning import caption, evaluation_mode, to_device, with_processor
from .explanation import Explanation, find_words


def explain(
    model: Any,
    image: str | os.PathLike[str] | bytes | Image.Image,
    processor: Any = None,
    *,
    text: str | None = None,
    prompt: str | None = None,
    layers: Sequence[int] | None = None,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
) -> Explanation:
    """Caption an image, and compute which parts of it the adapters attend to for each word.

    The attention of a word is that of the positions which predict its tokens: that of a token's own position
    is about the next token. docs/explain.md has the measurements of positions and layers.

    Args:
        model: A captioner, or the folder or Hub id of a saved captioner.
        image: A path, the bytes of an image file, or a PIL image.
        processor: The captioner's processor. By default it is loaded from the captioner's folder or Hub id.
        text: The text to explain. By default the captioner generates a caption.
        prompt: The beginning of the generated caption.
        layers: Indices of the language model's layers to average over; by default all with an adapter.
        num_beams: The number of beams of the generated caption; see `caption`.
        max_new_tokens: The maximum number of tokens of the generated caption after the prompt.

    Raises:
        UnreadableImageError: The image cannot be read.
        UserError: The text is empty or too long, a layer has no adapter, or both a text and settings of
            the generation are given.
        OSError: There is no captioner at the given path or Hub id.

    Example:
    ```python
    >>> import ituning_hf
    >>> explanation = ituning_hf.explain("my-captioner", "dog.jpg")  # doctest: +SKIP
    >>> explanation.save("dog.html")  # doctest: +SKIP
    >>> dict(zip(explanation.words, explanation.maps, strict=True))["dog"].shape  # doctest: +SKIP
    (14, 14)

    ```
    """
    given: dict[str, Any] = {"prompt": prompt, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
    if text is not None and (unused := [name for name, value in given.items() if value is not None]):
        raise UserError(f"Got text and {unused[0]}, which is for generated captions: remove one of them.")
    loaded = load_image(image)
    model, processor = with_processor(model, processor)
    chosen = _choose_layers(model.config.adapter_layers, layers)
    if text is None:
        text = str(caption(model, loaded, processor, **given))
    # As the processor does: JSON and command lines can have lone surrogates, which tokenizers refuse.
    text = text.strip().encode("utf-8", errors="replace").decode("utf-8")
    if not text:
        raise UserError("The text to explain is empty: give a text, or train the captioner longer.")
    inputs = dict(processor(images=loaded, captions=[text], return_tensors="pt"))
    del inputs["labels"]
    limit = model.config.text_config.max_position_embeddings
    if (length := inputs["input_ids"].shape[1]) > limit:
        raise UserError(f"The text has {length} tokens, expected at most {limit}: shorten it.")
    attention = _patch_attention(model, inputs, [model.config.adapter_layers.index(i) for i in chosen])
    spans = find_words(text)
    tokens = tokens_of_words(processor, text, spans)
    return Explanation(
        image=loaded,
        caption=text,
        words=[text[start:end] for start, end in spans],
        # The position of token t, after BOS, is t + 1. The position before it predicts it.
        maps=np.stack([attention[found].sum(axis=0) / max(len(found), 1) for found in tokens]),
        box=seen_box(processor.image_processor, loaded, *inputs["pixel_values"].shape[-2:]),
        layers=chosen,
    )


def _choose_layers(adapted: Sequence[int], given: Sequence[int] | None) -> list[int]:
    if given is None:
        return list(adapted)
    if not given or not set(given) <= set(adapted):
        raise UserError(
            f"layers is {list(given)}, expected some of the layers with an adapter, {list(adapted)}."
        )
    return sorted(set(given))


def _patch_attention(model: Any, inputs: dict[str, torch.Tensor], indices: Sequence[int]) -> np.ndarray:
    """Return the attention of each position over the patches, of shape (T, rows, columns)."""
    with evaluation_mode(model):
        weights = model.visual_attention(**to_device(inputs, model))  # (1, adapted layers, h, T, N)
    vision = model.config.vision_config
    first = encoder_family(vision).num_prefix_tokens(vision)
    patches = weights[0, list(indices), :, :, first:].float().mean(dim=(0, 1))  # (T, patches)
    height, width = inputs["pixel_values"].shape[-2:]
    grid = height // vision.patch_size, width // vision.patch_size
    return patches.reshape(-1, *grid).cpu().numpy()


def tokens_of_words(processor: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return, for each word, the indices of the text's tokens that have a character of it."""
    offsets = processor.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    ).offset_mapping
    return [
        [i for i, (start, end) in enumerate(offsets) if start < word_end and end > word_start]
        for word_start, word_end in spans
    ]


def seen_box(
    image_processor: Any, image: Image.Image, height: int, width: int
) -> tuple[float, float, float, float]:
    """Return the part of an image that the encoder sees, (left, top, right, bottom) in the image's pixels.

    Args:
        image_processor: It resizes the image and may crop the centre.
        image: The image.
        height: The height of `pixel_values`.
        width: The width of `pixel_values`.
    """
    resized = image
    if image_processor.size.shortest_edge:
        resized = crop_extreme_aspect(image)  # as the processor does; the scale stays the same
    pixels = image_processor(images=resized, do_center_crop=False, return_tensors="np")["pixel_values"]
    x, y = image.width / 2, image.height / 2
    half_width = width * resized.width / pixels.shape[-1] / 2
    half_height = height * resized.height / pixels.shape[-2] / 2
    return x - half_width, y - half_height, x + half_width, y + half_height
