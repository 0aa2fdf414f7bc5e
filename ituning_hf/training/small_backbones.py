"""Small backbones of the real classes, for when no pretrained ones are at hand.

A CLIP is trained contrastively on the images and their captions. A GPT-2 is trained on the captions alone,
run together into long documents: like the real one it has read text and has never been told that a caption
ends. Minutes on a CPU make both good enough to see the whole method at work; they are no match for
pretrained weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
)

from ..data import CaptionedImage, UnreadableImageError
from ..processing_ituning import ITuningProcessor, caption_rows
from .checkpoints import atomic_folder

Report = Callable[[str], None]
END_TOKEN = "<|endoftext|>"
MAX_TOKENS = 40
WINDOW = 24  # tokens of running text that the language model reads at a time
CAPTIONS_PER_DOCUMENT = 60
WIDTH, LAYERS, HEADS = 128, 4, 4


def make_small_backbones(
    folder: str | os.PathLike[str],
    images: Sequence[CaptionedImage],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    image_size: int = 64,
    patch_size: int = 8,
    vision_steps: int = 150,
    text_steps: int = 300,
    batch_size: int = 48,
    seed: int = 0,
    report: Report = lambda text: None,
) -> tuple[Path, Path]:
    """Train a small CLIP and a small GPT-2, and save them like downloaded ones.

    Args:
        folder: Gets two folders, "vision" (the encoder and its image preparation) and "text" (the
            language model and its tokenizer).
        images: What to train on; at least two.
        tokenizer: A folder with GPT-2's `vocab.json` and `merges.txt`. By default a small one is trained
            on the captions.
        image_size: Of the encoder, in pixels.
        patch_size: Of the encoder, in pixels.
        vision_steps: Optimizer steps of the CLIP; 0 leaves it untrained.
        text_steps: Optimizer steps of the GPT-2; 0 leaves it untrained.
        batch_size: Images, or captions, in a step.
        seed: Of the weights and the order.
        report: Is told what is being done.

    Returns:
        The two folders.
    """
    vision, text = Path(folder) / "vision", Path(folder) / "text"
    preparation = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    captions = [caption for image in images for caption in image.captions]
    words = _load_tokenizer(tokenizer) if tokenizer is not None else _train_tokenizer(captions, Path(folder))
    processor = ITuningProcessor(preparation, words)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        report(f"  a GPT-2 on {len(captions)} captions alone, {text_steps} steps ...")
        language_model = _train_language_model(processor, captions, text_steps, batch_size, rng)
        report(f"  a CLIP on {len(images)} images and their captions, {vision_steps} steps ...")
        encoder = _train_clip(processor, images, patch_size, vision_steps, batch_size, rng)
    for target, parts in ((vision, (encoder, preparation)), (text, (language_model, words))):
        with atomic_folder(target) as draft:
            for part in parts:
                part.save_pretrained(draft)
    return vision, text


def small_vision_config(**options: Any) -> CLIPVisionConfig:
    """Return the shape of the small encoder."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        **options,
    )


def small_text_config(**options: Any) -> GPT2Config:
    """Return the shape of the small language model."""
    return GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=128, **options)


def _train_tokenizer(captions: Sequence[str], folder: Path) -> GPT2Tokenizer:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(captions, vocab_size=1024, special_tokens=[END_TOKEN], show_progress=False)
    with atomic_folder(folder / "tokenizer") as draft:
        bpe.save_model(str(draft))
    return _load_tokenizer(folder / "tokenizer")


def _load_tokenizer(folder: str | os.PathLike[str]) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(os.fspath(folder))


def _train_language_model(
    processor: ITuningProcessor,
    captions: Sequence[str],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
) -> GPT2LMHeadModel:
    words = processor.tokenizer
    config = small_text_config(
        vocab_size=len(words), bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id
    )
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # its class name tells Transformers nothing of its loss

    text = _running_text(processor, captions, rng)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        windows = torch.stack([text[start : start + WINDOW] for start in chosen])
        return model(input_ids=windows, labels=windows).loss

    _optimize(model, loss, len(text) - WINDOW + 1, steps, batch_size, rng)
    return model.eval()


def _running_text(
    processor: ITuningProcessor, captions: Sequence[str], rng: np.random.Generator
) -> torch.Tensor:
    """Return the captions' tokens, shuffled and run together, with a begin token for each document."""
    tokens: list[int] = []
    for position, index in enumerate(rng.permutation(len(captions))):
        begin, *caption, _ = processor.encode_captions([captions[index]])[0]
        if position % CAPTIONS_PER_DOCUMENT == 0:
            tokens.append(begin)
        tokens += caption
    tokens += [processor.tokenizer.eos_token_id] * WINDOW  # at least one window, however few captions
    return torch.tensor(tokens)


def _train_clip(
    processor: ITuningProcessor,
    images: Sequence[CaptionedImage],
    patch_size: int,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
) -> CLIPVisionModel:
    words, size = processor.tokenizer, processor.image_processor.crop_size["height"]
    vision = small_vision_config(image_size=size, patch_size=patch_size)
    text = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        vocab_size=len(words),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=WIDTH)
    model = CLIPModel(config).train()
    pixels = _Pixels(processor, images)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        captions = [str(rng.choice(images[i].captions)) for i in chosen]
        batch = _captions_batch(processor, captions)
        # GPT-2's begin token is its end token, and CLIP reads a caption's meaning off the first end token.
        ids, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
        return model(input_ids=ids, attention_mask=mask, pixel_values=pixels[chosen], return_loss=True).loss

    _optimize(model, loss, len(images), steps, min(batch_size, len(images)), rng)
    encoder = CLIPVisionModel(vision)
    encoder.load_state_dict(model.vision_model.state_dict())
    return encoder.eval()


class _Pixels:
    """The images' pixels, prepared at most once each; what cannot be read is grey."""

    def __init__(self, processor: ITuningProcessor, images: Sequence[CaptionedImage]) -> None:
        self.processor, self.images = processor, images
        self.prepared: dict[int, torch.Tensor] = {}

    def __getitem__(self, chosen: np.ndarray) -> torch.Tensor:
        return torch.stack([self._one(int(i)) for i in chosen])

    def _one(self, index: int) -> torch.Tensor:
        if index not in self.prepared:
            try:
                pixels = self.processor(images=self.images[index].load())["pixel_values"][0]
            except UnreadableImageError:  # named, counted and left out by the training proper
                size = self.processor.image_processor.crop_size["height"]
                pixels = torch.zeros(3, size, size)
            self.prepared[index] = pixels.to(torch.float16)  # the whole set stays in memory
        return self.prepared[index].to(torch.float32)


def _captions_batch(processor: ITuningProcessor, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    encoded = [processor.encode_captions(captions, max_length=MAX_TOKENS)]
    words = processor.tokenizer
    rows = caption_rows(encoded, words.bos_token_id, words.pad_token_id)
    return {name: torch.tensor(row) for name, row in rows.items()}


def _optimize(
    model: torch.nn.Module,
    loss: Callable[[np.ndarray], torch.Tensor],
    num_samples: int,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    """Minimise a loss over shuffled batches of sample indices, with warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=max(steps, 1), pct_start=0.1
    )
    for _, chosen in zip(range(steps), _batches(num_samples, batch_size, rng), strict=False):
        optimizer.zero_grad()
        loss(chosen).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(num_samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    size = min(batch_size, num_samples)
    while True:
        order = rng.permutation(num_samples)
        yield from (order[i : i + size] for i in range(0, num_samples - size + 1, size))
