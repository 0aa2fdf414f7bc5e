"""What the rivals share: a frozen language model, packed captions, the loss and generation.

The captions of an image are packed into one row, as I-Tuning's are, and its prefix is computed once:

    [prefix, caption 1, caption 2, ...]

Each caption sees the prefix and itself. Its positions start after the prefix. Methods that change the layers
have a prefix of no tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from ituning_hf.captioner.decoders_ituning import decoder_family
from ituning_hf.captioner.generation_ituning import DEFAULT_MAX_NEW_TOKENS
from ituning_hf.captioner.loss_ituning import caption_loss, next_tokens, pack_rows, positions_from_mask


class FrozenCaptioner(nn.Module):
    """A captioner that leaves the language model's weights and layers as they are.

    Args:
        text_model: The language model. Its weights are frozen in place, and shared with this captioner. Its
            layers are not changed; I-Tuning adapters in them are ignored.
    """

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        self.family = decoder_family(text_model.config)
        self.text_model = self.family.without_adapters(text_model).requires_grad_(False).eval()
        self.hidden_size: int = text_model.config.hidden_size

    def train(self, mode: bool = True) -> FrozenCaptioner:
        """Set the training mode; the language model's dropout stays off."""
        super().train(mode)
        self.text_model.eval()
        return self

    def read_images(self, visual_features: torch.Tensor) -> torch.Tensor:
        """Return the prefix, (B, P, d), and give the images, (B, N, d_v), to the layers that see them."""
        raise NotImplementedError

    def forward(
        self,
        visual_features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        skip_logits: bool = True,
    ) -> CausalLMOutputWithPast:
        """Return an output with the `loss` that `ITuningForCaptioning` defines, and no logits.

        `visual_features` has shape (B, N, d_v); the others have shape (B * k, T), image-major.
        """
        prefix = self.read_images(visual_features.to(self.text_model.dtype))  # (B, P, d)
        targets = next_tokens(labels)
        packed = pack_rows(input_ids, attention_mask, targets, len(prefix), self.hidden_size)
        rows = input_ids, positions_from_mask(attention_mask, input_ids.shape[1]), targets
        # One row per image, or per caption; each of shape (rows, L).
        input_ids, position_ids, targets = packed[:3] if packed else rows
        prefix = prefix.repeat_interleave(len(input_ids) // len(prefix), dim=0)  # (rows, P, d)
        length = prefix.shape[1]
        outputs = self.text_model.base_model(
            inputs_embeds=torch.cat([prefix, self.text_model.get_input_embeddings()(input_ids)], dim=1),
            attention_mask=packed_mask(position_ids, length, prefix.dtype),
            position_ids=torch.cat(
                [torch.arange(length).to(position_ids).expand(len(prefix), -1), position_ids + length], dim=1
            ),
            use_cache=False,
        )
        hidden_states = outputs.last_hidden_state[:, length:]  # (rows, L, d)
        lm_head = self.text_model.get_output_embeddings()
        loss = caption_loss(lm_head, hidden_states, targets, num_items_in_batch, label_smoothing)
        return CausalLMOutputWithPast(loss=loss)

    @torch.no_grad()
    def generate(self, visual_features: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption images by Transformers' `generate`: (B, N, d_v) to token ids, without the BOS token."""
        prefix = self.read_images(visual_features.to(self.text_model.dtype))  # (B, P, d)
        tokens = self.family.special_tokens(self.text_model.config)
        begin = torch.full((len(prefix), 1), tokens["bos_token_id"], device=prefix.device)
        embeddings = torch.cat([prefix, self.text_model.get_input_embeddings()(begin)], dim=1)
        return self.text_model.generate(
            inputs_embeds=embeddings,  # (B, P + 1, d)
            attention_mask=embeddings.new_ones(embeddings.shape[:2], dtype=torch.long),
            **{**tokens, "max_new_tokens": DEFAULT_MAX_NEW_TOKENS, **options},
        )


def packed_mask(position_ids: torch.Tensor, prefix_length: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask of packed captions, (rows, 1, P + L, P + L).

    `position_ids`, (rows, L), restart at 0 where a caption begins.
    """
    caption = F.pad((position_ids == 0).cumsum(dim=1), (prefix_length, 0))  # (rows, P + L), 0 in the prefix
    query, key = caption[:, :, None], caption[:, None, :]
    is_visible = ((key == query) | (key == 0)).tril()  # (rows, P + L, P + L)
    mask = torch.zeros(is_visible.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill(~is_visible, torch.finfo(dtype).min)[:, None]
