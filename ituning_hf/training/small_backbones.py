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

from ..captioner.processing_ituning import ITuningProcessor, caption_rows
from ..data.images import UnreadableImageError
from ..data.records import CaptionedImage
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
    words = (
        _load_tokenizer(tokenizer)
        if tokenizer is not None
        else train_tokenizer(captions, Path(folder) / "tokenizer")
    )
    processor = ITuningProcessor(preparation, words)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        report(f"  a GPT-2 on {len(captions)} captions alone, {text_steps} steps ...")
        language_model = train_language_model(processor, captions, text_steps, batch_size, rng, report)
        report(f"  a CLIP on {len(images)} images and their captions, {vision_steps} steps ...")
        encoder = _train_clip(processor, images, patch_size, vision_steps, batch_size, rng, report)
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


def train_tokenizer(captions: Sequence[str], folder: Path) -> GPT2Tokenizer:
    """Train a small GPT-2 tokenizer on captions.

    Args:
        captions: To learn from.
        folder: Gets its `vocab.json` and `merges.txt`.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(captions, vocab_size=1024, special_tokens=[END_TOKEN], show_progress=False)
    with atomic_folder(folder) as draft:
        bpe.save_model(str(draft))
    return _load_tokenizer(folder)


def _load_tokenizer(folder: str | os.PathLike[str]) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(os.fspath(folder))


def train_language_model(
    processor: ITuningProcessor,
    captions: Sequence[str],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    report: Report = lambda text: None,
    num_end_tokens: int = 1,
) -> GPT2LMHeadModel:
    """Train a small GPT-2 on captions that are run together into documents.

    Args:
        processor: Its tokenizer decides.
        captions: To learn from.
        steps: Optimizer steps; 0 leaves it untrained.
        batch_size: Windows of the text in a step.
        rng: Of the order.
        report: Is told the loss now and then.
        num_end_tokens: After the last document.

    Returns:
        The language model, in evaluation mode.
    """
    words = processor.tokenizer
    config = small_text_config(
        vocab_size=len(words), bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id
    )
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # its class name tells Transformers nothing of its loss

    text = _running_text(processor, captions, rng, num_end_tokens)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        windows = torch.stack([text[start : start + WINDOW] for start in chosen])
        return model(input_ids=windows, labels=windows).loss

    optimize(model, loss, len(text) - WINDOW + 1, steps, batch_size, rng, report)
    return model.eval()


def _running_text(
    processor: ITuningProcessor, captions: Sequence[str], rng: np.random.Generator, num_end_tokens: int
) -> torch.Tensor:
    """Return the captions' tokens, shuffled and run together, with a begin token for each document."""
    tokens: list[int] = []
    for position, index in enumerate(rng.permutation(len(captions))):
        begin, *caption, _ = processor.encode_captions([captions[index]])[0]
        if position % CAPTIONS_PER_DOCUMENT == 0:
            tokens.append(begin)
        tokens += caption
    # More than needed, and where captions are few the model learns that nothing follows a begin token.
    num_end_tokens = max(num_end_tokens, WINDOW - len(tokens))
    tokens += [processor.tokenizer.eos_token_id] * num_end_tokens
    return torch.tensor(tokens)


def _train_clip(
    processor: ITuningProcessor,
    images: Sequence[CaptionedImage],
    patch_size: int,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    report: Report,
) -> CLIPVisionModel:
    config = small_clip_config(processor, patch_size)
    model = CLIPModel(config).train()
    pixels = PixelCache(processor, images)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        captions = [str(rng.choice(images[i].captions)) for i in chosen]
        texts = clip_text_inputs(processor, captions)
        return model(**texts, pixel_values=pixels[chosen], return_loss=True).loss

    optimize(model, loss, len(images), steps, min(batch_size, len(images)), rng, report)
    return vision_encoder_of(model)


def small_clip_config(processor: ITuningProcessor, patch_size: int) -> CLIPConfig:
    """Return the shape of a small CLIP for this processor's images and tokens."""
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
    return CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=WIDTH)


def clip_text_inputs(processor: ITuningProcessor, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tokenize for a CLIP's text tower: each caption and its end token, (captions, T).

    GPT-2's begin token is left out: it is the end token too, and CLIP reads a text's meaning off the first.
    """
    encoded = [processor.encode_captions(captions, max_length=MAX_TOKENS)]
    words = processor.tokenizer
    rows = caption_rows(encoded, words.bos_token_id, words.pad_token_id)
    return {name: torch.tensor(rows[name])[:, 1:] for name in ("input_ids", "attention_mask")}


def vision_encoder_of(model: CLIPModel) -> CLIPVisionModel:
    """Return a trained CLIP's vision encoder on its own, in evaluation mode."""
    encoder = CLIPVisionModel(model.config.vision_config)
    encoder.load_state_dict(model.vision_model.state_dict())
    return encoder.eval()


class PixelCache:
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


def optimize(
    model: torch.nn.Module,
    loss: Callable[[np.ndarray], torch.Tensor],
    num_samples: int,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    report: Report = lambda text: None,
) -> None:
    """Minimise a loss by AdamW with warm-up and cosine decay.

    Args:
        model: What is trained, all of it.
        loss: Of a batch, given the indices of its samples.
        num_samples: How many samples there are.
        steps: Optimizer steps.
        batch_size: Samples in a step.
        rng: Of the order.
        report: Is told the loss of every fiftieth step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=max(steps, 1), pct_start=0.1
    )
    batches = _batches(num_samples, batch_size, rng)
    for step, chosen in zip(range(1, steps + 1), batches, strict=False):
        optimizer.zero_grad()
        value = loss(chosen)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            report(f"    step {step}, loss {value.item():.4f}")


def _batches(num_samples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    size = min(batch_size, num_samples)
    while True:
        order = rng.permutation(num_samples)
        yield from (order[i : i + size] for i in range(0, num_samples - size + 1, size))
