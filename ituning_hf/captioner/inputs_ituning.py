"""What the models' public calls refuse, before anything is computed."""

from __future__ import annotations

import torch

IGNORE_INDEX = -100  # a label that is scored by nobody; PyTorch's own value


def check_text(
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    positions: int,
) -> torch.Tensor:
    """Refuse text rows that do not fit one another or the language model.

    Args:
        input_ids: Expected to be of shape (rows, T).
        attention_mask: Expected to have as many rows.
        labels: Expected to be of the same shape.
        positions: How many the language model has.

    Returns:
        `input_ids`.

    Raises:
        ValueError: with what is given and what is expected.
    """
    if input_ids is None:
        raise ValueError(
            "input_ids is None: give the text rows to score (processor(captions=...) or "
            "processor(text=...)), or call generate(pixel_values=...) for captions."
        )
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (rows, tokens).")
    if attention_mask is not None and attention_mask.shape[0] != input_ids.shape[0]:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[0]} rows and input_ids {input_ids.shape[0]}: give as "
            "many."
        )
    if input_ids.shape[1] > positions:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens in a row, and the language model has only "
            f"{positions} positions: cut the text."
        )
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and input_ids {tuple(input_ids.shape)}: they must be "
            "equal (the shift by one is made here)."
        )
    return input_ids


def check_rows(rows: int, images: int) -> None:
    """Refuse text rows that cannot be divided among the images evenly.

    Raises:
        ValueError: with both numbers.
    """
    if rows == 0 or images == 0 or rows % images:
        raise ValueError(
            f"input_ids has {rows} rows for {images} images: the rows must be a multiple of the images, "
            "image-major (k rows for each image, next to each other)."
        )


def check_pixel_values(pixel_values: torch.Tensor, channels: int, size: int) -> None:
    """Refuse pixels of another shape than (num_images, channels, size, size).

    Raises:
        ValueError: with both shapes.
    """
    fits = pixel_values.ndim == 4 and pixel_values.shape[1:] == (channels, size, size)
    if not fits or pixel_values.shape[0] == 0:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, expected (num_images, {channels}, "
            f"{size}, {size}): prepare one image or more with the captioner's own processor."
        )


def check_visual_features(features: torch.Tensor, width: int, name: str = "visual_features") -> None:
    """Refuse a visual memory of another shape than (num_images, N, width).

    Args:
        features: The visual memory.
        width: The vision encoder's.
        name: What the caller knows it by.

    Raises:
        TypeError: for what is no tensor, such as the encoder's whole output.
        ValueError: with both shapes.
    """
    if not isinstance(features, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(features).__name__}, expected a tensor: give the encoder's last_hidden_state."
        )
    if features.ndim != 3 or features.shape[1] == 0 or features.shape[-1] != width:
        raise ValueError(
            f"{name} has shape {tuple(features.shape)}, expected (num_images, tokens, {width}): give the "
            "hidden states of the vision encoder that it was trained on."
        )


__all__ = ["IGNORE_INDEX", "check_pixel_values", "check_rows", "check_text", "check_visual_features"]
