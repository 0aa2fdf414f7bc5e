"""The captions of one image in one row, one after the other: what need not be computed is left out.

A batch pads each caption to the longest of all, and no label asks for anything after a caption's last one.
Where only the loss is wanted, the rows of an image can stand in one, without padding: positions begin anew
with each caption, by which Transformers' mask functions know that captions do not see one another, and the
adapter sees one row for each image instead of k. The sum over the labels is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .generation_ituning import positions_from_mask
from .inputs_ituning import IGNORE_INDEX


@dataclass(frozen=True)
class TextRows:
    """Rows of text for the decoder.

    Args:
        input_ids: Shape (rows, T), image-major.
        attention_mask: 1 at tokens, 0 at padding, of shape (rows, T); None if the positions tell.
        position_ids: Shape (rows, T); None if the mask tells.
        targets: The token that each position is scored against, of shape (rows, T), -100 where there is
            none; None if nothing is scored.
        are_packed: Whether a row holds all of an image's.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    targets: torch.Tensor | None
    are_packed: bool = False

    def for_decoder(self, embedding: nn.Module) -> dict[str, Any]:
        """Return the decoder's arguments.

        Args:
            embedding: Its token embedding.
        """
        if self.are_packed:  # embedded, as Transformers would take a begin token for padding without a mask
            embeds, position_ids = embedding(self.input_ids), self.position_ids
            if position_ids is not None:  # Transformers makes a mask of them where the embeddings are
                position_ids = position_ids.to(embeds.device)
            return {"inputs_embeds": embeds, "position_ids": position_ids}
        position_ids = self.position_ids
        if position_ids is None and self.attention_mask is not None and self.attention_mask.ndim == 2:
            position_ids = positions_from_mask(self.attention_mask, self.input_ids.shape[1])
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": position_ids,
        }


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return what each position of rows with these labels is scored against, of the same shape."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def pack(rows: TextRows, num_images: int, hidden_size: int) -> TextRows:
    """Put the rows of each image into one, if that is less work.

    Args:
        rows: Shape (num_images * k, T), with targets.
        num_images: How many images they belong to.
        hidden_size: The decoder's width.

    Returns:
        Rows of shape (num_images, L), where L is the longest image's number of tokens; or those given, if
        that would save nothing, they come with positions of their own, or a label hangs on padding.
    """
    given = rows.attention_mask
    mask = torch.ones_like(rows.input_ids) if given is None else given.to(rows.input_ids.device)
    has_own_places = rows.position_ids is not None or mask.shape != rows.input_ids.shape
    if rows.targets is None or has_own_places or torch.compiler.is_compiling():  # compiled, shapes are static
        return rows
    targets = rows.targets.to(mask.device)
    labelled, token = targets != IGNORE_INDEX, mask.bool()
    needed = labelled.flip(1).cumsum(1).flip(1) > 0  # something from here on is scored
    kept = needed & token
    counts = [*kept.view(num_images, -1).sum(1), (labelled & ~token).sum()]
    *sizes, labels_on_padding = torch.stack(counts).tolist()
    if labels_on_padding or not _is_less_work(num_images, max(sizes), kept.shape, hidden_size):
        return rows

    def packed(values: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return pad_sequence(values[kept].split(sizes), batch_first=True, padding_value=padding)

    positions = positions_from_mask(mask, mask.shape[1])
    return TextRows(
        packed(rows.input_ids), None, packed(positions), packed(targets, IGNORE_INDEX), are_packed=True
    )


def _is_less_work(num_images: int, longest: int, shape: torch.Size, hidden_size: int) -> bool:
    """Compare a layer's multiplications: 12 d^2 for a token of width d, and 2 d for each that it looks at."""
    rows, length = shape
    packed = num_images * longest * (6 * hidden_size + longest)
    return 0 < packed < rows * length * (6 * hidden_size + length)


__all__ = ["TextRows", "next_tokens", "pack"]
