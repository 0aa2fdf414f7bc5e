"""What people caption pictures with today: Transformers' own classes over backbones of the same sizes.

All weights are random, and dropout is what their configurations have. Their `forward` takes a picture for
each row of text, so with five captions of a picture it is encoded five times; where a model lets encoder
outputs be passed, a second form shares them by hand, and leaves dropout out.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitVisionConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from ituning_hf import ITuningConfig

from .backbones import frozen_text_model, frozen_vision_model
from .captions import Batch


class Peer(ABC):
    """A captioning model and how it is used.

    Args:
        config: A captioner's, whose backbones are taken.
    """

    note: str
    """What a reader should know beside the name: what is trained, and in what its size differs."""

    model: nn.Module

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss that it is trained with, over the batch's captions."""

    @abstractmethod
    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption pictures of shape (num_images, 3, image_size, image_size) by its own `generate`."""


class VisionEncoderDecoder(Peer):
    """CLIP's vision encoder and GPT-2 with cross-attention in every layer.

    Args:
        config: As in `Peer`.
        train_all: Train the backbones too, and not the cross-attention alone.
        by_hand: Encode each picture once and repeat its states for its captions; no dropout.
    """

    def __init__(self, config: ITuningConfig, train_all: bool = False, by_hand: bool = False) -> None:
        decoder = copy.deepcopy(config.text_config)
        decoder.add_cross_attention = decoder.is_decoder = True
        if by_hand:
            decoder.resid_pdrop = decoder.embd_pdrop = decoder.attn_pdrop = 0.0
        both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(config.vision_config, decoder)
        both.decoder_start_token_id = decoder.bos_token_id
        both.pad_token_id = both.eos_token_id = decoder.eos_token_id
        self.model: Any = VisionEncoderDecoderModel(both).requires_grad_(train_all).train()
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in ("crossattention", "ln_cross_attn", "enc_to_dec_proj")):
                parameter.requires_grad_(True)
        generation = self.model.generation_config
        generation.decoder_start_token_id = generation.bos_token_id = decoder.bos_token_id
        generation.pad_token_id = generation.eos_token_id = decoder.eos_token_id
        self.by_hand = by_hand
        self.note = "all of it trained" if train_all else "frozen, its cross-attention trained"
        if by_hand:
            self.note += "; each picture encoded once, no dropout"

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss: rows go in without their last token, and are scored from the second."""
        k = batch.captions_per_image
        if self.by_hand:
            states = self.model.encoder(pixel_values=batch.pixel_values).last_hidden_state
            pictures = {"encoder_outputs": BaseModelOutput(states.repeat_interleave(k, dim=0))}
        else:
            pictures = {"pixel_values": batch.pixel_values.repeat_interleave(k, dim=0)}
        return self.model(
            **pictures,
            decoder_input_ids=batch.input_ids[:, :-1],
            decoder_attention_mask=batch.attention_mask[:, :-1],
            labels=batch.labels[:, 1:].contiguous(),
            use_cache=False,
        ).loss

    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption pictures; each is encoded once and repeated for its beams."""
        return self.model.generate(pixel_values=pixel_values, **options)


class PictureForEachRow(Peer):
    """A peer whose `forward` takes a picture beside each row of text, in a vocabulary of its own."""

    vocab_size: int

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss of its own `forward`, a picture for each row."""
        k = batch.captions_per_image
        return self.model(
            pixel_values=batch.pixel_values.repeat_interleave(k, dim=0),
            **_in_vocabulary(batch, self.vocab_size),
        ).loss


class Git(PictureForEachRow):
    """GIT at the size of its base: half of GPT-2's layers, and BERT's vocabulary at that size."""

    note = "all of it trained; half the decoder's layers, 30,522 words"

    def __init__(self, config: ITuningConfig) -> None:
        vision, text = config.vision_config, config.text_config
        self.vocab_size = min(text.vocab_size, GitConfig().vocab_size)
        sizes = {
            "hidden_size": text.hidden_size,
            "intermediate_size": 4 * text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers // 2,
            "num_attention_heads": text.num_attention_heads,
        }
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        encoder = GitVisionConfig(**_same_fields(vision)).to_dict()
        self.model: Any = GitForCausalLM(
            GitConfig(vision_config=encoder, vocab_size=self.vocab_size, **sizes, **tokens)
        ).train()

    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption pictures from its begin token."""
        begin = torch.ones(len(pixel_values), 1, dtype=torch.long, device=pixel_values.device)
        return self.model.generate(
            pixel_values=pixel_values, input_ids=begin, attention_mask=torch.ones_like(begin), **options
        )


class Blip(PictureForEachRow):
    """BLIP at the size of its base: a BERT of GPT-2's depth with cross-attention in every layer."""

    note = "all of it trained; a BERT of as many layers, 30,524 words, pictures as large as the others'"

    def __init__(self, config: ITuningConfig) -> None:
        vision, text = config.vision_config, config.text_config
        self.vocab_size = min(text.vocab_size, BlipTextConfig().vocab_size)
        decoder = BlipTextConfig(
            hidden_size=text.hidden_size,
            intermediate_size=4 * text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            vocab_size=self.vocab_size,
            bos_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
            pad_token_id=0,
        )
        encoder = BlipVisionConfig(**_same_fields(vision))
        self.model: Any = BlipForConditionalGeneration(
            BlipConfig(text_config=decoder.to_dict(), vision_config=encoder.to_dict())
        ).train()

    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption pictures; of its own end token it is told not to write it, for it takes no other."""
        options["min_new_tokens"] = (
            options.get("max_new_tokens") if options.pop("eos_token_id", None) else None
        )
        return self.model.generate(pixel_values, **options)


class Prefix(Peer):
    """A prefix as in ClipCap: the class token becomes ten input embeddings of a frozen GPT-2.

    Args:
        config: As in `Peer`.
        from_features: Take the class token from stored features, as ClipCap's training does.
    """

    note = "frozen, an MLP from the class token to ten embeddings trained"

    def __init__(self, config: ITuningConfig, from_features: bool = False) -> None:
        self.model: PrefixModel = PrefixModel(config, with_encoder=not from_features)
        self.from_features = from_features
        if from_features:
            self.note += "; no encoder"

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean token loss over the logits of all text positions, as ClipCap's training does."""
        memory = batch.visual_features if self.from_features else self.model.encode(batch.pixel_values)
        prefix = self.model(memory).repeat_interleave(batch.captions_per_image, dim=0)
        decoder = self.model.text_model
        words = decoder.transformer.wte(batch.input_ids)
        mask = F.pad(batch.attention_mask, (prefix.shape[1], 0), value=1)
        logits = decoder(
            inputs_embeds=torch.cat([prefix.to(words.dtype), words], dim=1),
            attention_mask=mask,
            use_cache=False,
        ).logits[:, prefix.shape[1] : -1]
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.labels[:, 1:].flatten())

    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """Caption pictures: the prefix, the begin token, and on."""
        prefix = self.model(self.model.encode(pixel_values))
        decoder = self.model.text_model
        begin = torch.full((len(prefix), 1), decoder.config.bos_token_id, device=prefix.device)
        words = decoder.transformer.wte(begin)
        embeddings = torch.cat([prefix.to(words.dtype), words], dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=prefix.device)
        return decoder.generate(inputs_embeds=embeddings, attention_mask=mask, **options)


class PrefixModel(nn.Module):
    """The parts of `Prefix`: its MLP, and the frozen backbones.

    Args:
        config: A captioner's, whose backbones are taken.
        with_encoder: Whether pictures are encoded; features alone are taken otherwise.
        length: Embeddings of a prefix.
    """

    vision_model: Any
    text_model: Any

    def __init__(self, config: ITuningConfig, with_encoder: bool = True, length: int = 10) -> None:
        super().__init__()
        self.vision_model = frozen_vision_model(config) if with_encoder else None
        self.text_model = frozen_text_model(config)
        width, out = config.vision_config.hidden_size, length * config.text_config.hidden_size
        self.mlp = nn.Sequential(nn.Linear(width, out // 2), nn.Tanh(), nn.Linear(out // 2, out))
        self.length = length

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the encoder's last hidden states, of shape (num_images, N, d_v)."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state

    def forward(self, visual_features: torch.Tensor) -> torch.Tensor:
        """Turn features of shape (num_images, N, d_v) into prefixes of shape (num_images, length, d)."""
        class_token = visual_features[:, 0].to(next(self.mlp.parameters()).dtype)
        return self.mlp(class_token).unflatten(-1, (self.length, -1))


CROSS_ATTENTION = "VisionEncoderDecoder, cross-attention"
PEERS: dict[str, Callable[[ITuningConfig], Peer]] = {
    CROSS_ATTENTION: VisionEncoderDecoder,
    f"{CROSS_ATTENTION}, encoder shared by hand": lambda config: VisionEncoderDecoder(config, by_hand=True),
    "VisionEncoderDecoder": lambda config: VisionEncoderDecoder(config, train_all=True),
    "GIT": Git,
    "BLIP": Blip,
    "ClipCap prefix": Prefix,
    "ClipCap prefix, stored features": lambda config: Prefix(config, from_features=True),
}


def peer_names(size: str) -> list[str]:
    """Return the peers there are at a size: GIT and BLIP were made with no decoder like the larger GPT-2s."""
    return [name for name in PEERS if size in ("small", "base") or name not in ("GIT", "BLIP")]


def _same_fields(vision: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(vision, name) for name in (*names, "image_size", "patch_size")}


def _in_vocabulary(batch: Batch, vocab_size: int) -> dict[str, torch.Tensor]:
    """Return the text with every token in a smaller vocabulary."""
    labels = batch.labels.where(batch.labels < 0, batch.labels % vocab_size)
    return batch.text | {"input_ids": batch.input_ids % vocab_size, "labels": labels}
