"""Pretrain the two miniature backbones that the package ships for drawn scenes: half an hour on a CPU core.

    python examples/pretrain_scene_backbones.py ituning_hf/data/scene_backbones

The GPT-2 is trained on captions alone, joined into long documents. Like the released GPT-2 it has read text
and has not learned where a caption ends.

The CLIP is trained to tell true phrases of a picture from false ones. A phrase is compared with every patch,
and the best-matching patches count (as in FILIP, Yao et al., arXiv 2111.07783). A loss on the class token
alone taught the patches colours and positions but hardly shapes, and the adapters read the patches.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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

from ituning_hf import ITuningProcessor
from ituning_hf.data.scene_captions import SIDES, noun_phrase, place_objects
from ituning_hf.data.scenes import COLOURS, RADII, SHAPES, Scene, SceneObject, make_scene

SERIES = 20_220_614  # the series of scenes; the demo's seeds choose other series
WORDINGS = 6  # captions of each scene
IMAGE_SIZE, PATCH_SIZE = 64, 8  # pixels
WIDTH, LAYERS, HEADS = 128, 4, 4  # of both models
MAX_PHRASE_TOKENS = 40
WINDOW = 24  # tokens of running text in one sample of the language model
CAPTIONS_PER_DOCUMENT = 60
VISION_BATCH, TEXT_BATCH = 96, 48  # scenes and windows in an optimizer step
END_TOKEN = "<|endoftext|>"

Report = Callable[[str], None]


def pretrain_backbones(
    folder: str | os.PathLike[str],
    *,
    num_scenes: int = 20_000,
    vision_steps: int = 2500,
    text_steps: int = 1000,
    seed: int = 0,
    report: Report = print,
) -> tuple[Path, Path]:
    """Pretrain a miniature CLIP and a miniature GPT-2 on scenes, and save them by `save_pretrained`.

    Args:
        folder: Receives the folders "vision" and "text".
        num_scenes: Number of training scenes.
        vision_steps: Optimizer steps of the CLIP.
        text_steps: Optimizer steps of the GPT-2.
        seed: Seed of the weights and of the order of samples.
        report: Called with progress messages.

    Returns:
        The two folders.
    """
    vision, text = Path(folder) / "vision", Path(folder) / "text"
    scenes = [make_scene(SERIES, index) for index in range(num_scenes)]
    captions = [caption for scene in scenes for caption in scene.captions(WORDINGS)]
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    tokenizer = train_tokenizer(captions)
    processor = ITuningProcessor(image_processor, tokenizer)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    report(f"a GPT-2 on {len(captions):,} captions, {text_steps} steps")
    language_model = train_language_model(processor, captions, text_steps, rng, report)
    report(f"a CLIP on {len(scenes):,} scenes, {vision_steps} steps")
    encoder = train_vision_encoder(processor, scenes, vision_steps, rng, report)
    for target, parts in ((vision, (encoder, image_processor)), (text, (language_model, tokenizer))):
        for part in parts:
            part.save_pretrained(target)
    return vision, text


def train_tokenizer(captions: Sequence[str]) -> GPT2Tokenizer:
    """Train a small byte-level BPE tokenizer on captions, and load it as GPT-2's."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(captions, vocab_size=1024, special_tokens=[END_TOKEN], show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        bpe.save_model(folder)
        return GPT2Tokenizer.from_pretrained(folder)


def train_language_model(
    processor: ITuningProcessor,
    captions: Sequence[str],
    steps: int,
    rng: np.random.Generator,
    report: Report,
) -> GPT2LMHeadModel:
    """Train a GPT-2 on captions that are shuffled and joined into documents; `rng` draws the order."""
    tokenizer = processor.tokenizer
    config = GPT2Config(
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=128,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # Transformers cannot tell the loss from the class name
    tokens: list[int] = []
    for position, index in enumerate(rng.permutation(len(captions))):
        begin, *caption, _ = processor.encode_captions([captions[index]])[0]
        if position % CAPTIONS_PER_DOCUMENT == 0:
            tokens.append(begin)
        tokens += caption
    text = torch.tensor(tokens + [tokenizer.eos_token_id] * WINDOW)

    def loss(chosen: np.ndarray) -> torch.Tensor:
        windows = torch.stack([text[start : start + WINDOW] for start in chosen])
        return model(input_ids=windows, labels=windows).loss

    optimize(model, loss, len(text) - WINDOW + 1, steps, TEXT_BATCH, rng, report)
    return model.eval()


def train_vision_encoder(
    processor: ITuningProcessor,
    scenes: Sequence[Scene],
    steps: int,
    rng: np.random.Generator,
    report: Report,
) -> CLIPVisionModel:
    """Train a CLIP to tell the true phrases of a scene from the false ones, and return its vision encoder."""
    size: dict[str, int] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    vision_config = CLIPVisionConfig(
        **size,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    tokenizer = processor.tokenizer
    text_config = CLIPTextConfig(
        **size,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_PHRASE_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = CLIPConfig(
        vision_config=vision_config.to_dict(), text_config=text_config.to_dict(), projection_dim=WIDTH
    )
    model = CLIPModel(config).train()
    groups = all_phrases()
    phrases = processor(captions=[text for group in groups for text in group], return_tensors="pt")
    # CLIP pools at the first end token, and GPT-2's begin token is the same token: leave it out.
    phrase_inputs = {name: phrases[name][:, 1:] for name in ("input_ids", "attention_mask")}
    truths = [true_phrases(scene) for scene in scenes]
    is_true = torch.tensor([[text in true for group in groups for text in group] for true in truths])
    pictures = (processor(images=scene.load(), return_tensors="pt")["pixel_values"][0] for scene in scenes)
    pixels = torch.stack([picture.half() for picture in pictures])  # all in memory

    def loss(chosen: np.ndarray) -> torch.Tensor:
        scores = _phrase_scores(model, pixels[chosen].float(), phrase_inputs)
        sizes = [len(group) for group in groups]
        pairs = zip(scores.split(sizes, 1), is_true[chosen].split(sizes, 1), strict=True)
        losses = [_contrast(s, t) + _contrast(s.t(), t.t()) for s, t in pairs]
        return torch.stack(losses).mean() / 2

    optimize(model, loss, len(scenes), steps, VISION_BATCH, rng, report)
    encoder = CLIPVisionModel(model.config.vision_config)
    encoder.load_state_dict(model.vision_model.state_dict())
    return encoder.eval()


def all_phrases() -> list[list[str]]:
    """Return all phrases about one object: colour and shape; size too; position in the scene too."""
    kinds = [SceneObject(shape, colour, "small", 0, 0) for colour in COLOURS for shape in SHAPES]
    sized = [
        SceneObject(shape, colour, size, 0, 0) for size in RADII for colour in COLOURS for shape in SHAPES
    ]
    return [
        [noun_phrase(item, with_size=False) for item in kinds],
        [noun_phrase(item, with_size=True) for item in sized],
        [f"{noun_phrase(item, with_size=False)} {side}" for side in SIDES for item in kinds],
    ]


def true_phrases(scene: Scene) -> set[str]:
    """Return those of `all_phrases` that are true of a scene."""
    true = set()
    for item, side in place_objects(scene):
        plain = noun_phrase(item, with_size=False)
        true |= {plain, noun_phrase(item, with_size=True), f"{plain} {side}"}
    return true


def _phrase_scores(model: CLIPModel, pixels: torch.Tensor, phrases: dict[str, torch.Tensor]) -> torch.Tensor:
    """Score each phrase on each picture.

    Args:
        model: The CLIP.
        pixels: (B, 3, H, W).
        phrases: `input_ids` and `attention_mask`, each (P, T).

    Returns:
        (B, P): a soft maximum over the patches of their cosine with the phrase, times CLIP's temperature.
    """
    states = model.vision_model(pixel_values=pixels).last_hidden_state
    patches = model.visual_projection(model.vision_model.post_layernorm(states[:, 1:]))  # (B, N, d)
    texts = model.text_projection(model.text_model(**phrases).pooler_output)
    cosines = F.normalize(patches, dim=-1) @ F.normalize(texts, dim=-1).t()  # (B, N, P)
    scaled = model.logit_scale.exp().clamp(max=100) * cosines
    return torch.logsumexp(scaled, dim=1) - math.log(scaled.shape[1])


def _contrast(scores: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """Return the mean over true entries of -log(softmax against the false entries of their row).

    Args:
        scores: (rows, columns).
        is_true: The same shape; a row may have any number of true entries.
    """
    false = scores.masked_fill(is_true, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (torch.logaddexp(scores, false) - scores)[is_true].mean()


def optimize(
    model: torch.nn.Module,
    loss: Callable[[np.ndarray], torch.Tensor],
    num_samples: int,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    report: Report,
) -> None:
    """Minimise the loss of random batches by AdamW over all weights, with warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="receives the folders vision and text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pretrain_backbones(options.folder, seed=options.seed)
