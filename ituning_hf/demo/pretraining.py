"""Makes the demo's two backbones from nothing; `examples/pretrain_scene_backbones.py` runs it.

The GPT-2 reads captions. The CLIP learns which phrases of captions are true of a picture, by contrast with
those that are not. A phrase is compared with each patch, and the best-matching patches count (as in FILIP,
Yao et al., arXiv 2111.07783): a loss on the class token alone taught the patches colours and places but
hardly shapes, and the patches are what the adapter reads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPVisionModel

from ..captioner.processing_ituning import ITuningProcessor
from ..data.records import CaptionedImage
from ..data.scene_captions import SIDES, noun_phrase, place_objects
from ..data.scenes import COLOURS, RADII, SHAPES, Scene, SceneObject, make_scene
from ..training.checkpoints import atomic_folder
from ..training.small_backbones import (
    WINDOW,
    PixelCache,
    Report,
    clip_text_inputs,
    optimize,
    small_clip_config,
    train_language_model,
    train_tokenizer,
    vision_encoder_of,
)

SERIES = 20_220_614  # of scenes; the demo's own seeds choose others
WORDINGS = 6
IMAGE_SIZE = 64  # pixels
PATCH_SIZE = 8
VISION_BATCH, TEXT_BATCH = 96, 48  # scenes, and windows of text, in a step


def pretrain_backbones(
    folder: str | os.PathLike[str],
    *,
    num_scenes: int = 20_000,
    vision_steps: int = 2500,
    text_steps: int = 1000,
    seed: int = 0,
    report: Report = print,
) -> tuple[Path, Path]:
    """Pretrain a small CLIP and a small GPT-2 on scenes, and save them like downloaded ones.

    Args:
        folder: Gets two folders, "vision" and "text".
        num_scenes: Scenes to learn from.
        vision_steps: Optimizer steps of the CLIP.
        text_steps: Optimizer steps of the GPT-2.
        seed: Of the weights and the order.
        report: Is told what is being done, and the loss now and then.

    Returns:
        The two folders.
    """
    vision, text = Path(folder) / "vision", Path(folder) / "text"
    scenes = [make_scene(SERIES, index) for index in range(num_scenes)]
    captions = [caption for scene in scenes for caption in scene.captions(WORDINGS)]
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    preparation = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    words = train_tokenizer(captions, text)
    processor = ITuningProcessor(preparation, words)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    report(f"a GPT-2 on {len(captions):,} captions, {text_steps} steps")
    language_model = train_language_model(
        processor, captions, text_steps, TEXT_BATCH, rng, report, num_end_tokens=WINDOW
    )
    report(f"a CLIP on {len(scenes):,} scenes, {vision_steps} steps")
    encoder = train_vision_encoder(processor, scenes, vision_steps, rng, report)
    for target, parts in ((vision, (encoder, preparation)), (text, (language_model, words))):
        with atomic_folder(target) as draft:
            for part in parts:
                part.save_pretrained(draft)
    return vision, text


def train_vision_encoder(
    processor: ITuningProcessor,
    scenes: Sequence[Scene],
    steps: int,
    rng: np.random.Generator,
    report: Report,
) -> CLIPVisionModel:
    """Train a CLIP to tell the phrases that are true of a scene from those that are not.

    Args:
        processor: Prepares pictures and words.
        scenes: To learn from.
        steps: Optimizer steps.
        rng: Of the order.
        report: Is told the loss now and then.

    Returns:
        Its vision encoder, in evaluation mode.
    """
    model = CLIPModel(small_clip_config(processor, PATCH_SIZE)).train()
    groups = all_phrases()
    phrases = clip_text_inputs(processor, [text for group in groups for text in group])
    is_true = torch.stack([_truth(scene, groups) for scene in scenes])
    pixels = PixelCache(processor, [CaptionedImage(str(i), ("",), scene) for i, scene in enumerate(scenes)])

    def loss(chosen: np.ndarray) -> torch.Tensor:
        scores = _phrase_scores(model, pixels[chosen], phrases)
        sizes = [len(group) for group in groups]
        pairs = zip(scores.split(sizes, 1), is_true[chosen].split(sizes, 1), strict=True)
        losses = [_contrast(s, t) + _contrast(s.t(), t.t()) for s, t in pairs]
        return torch.stack(losses).mean() / 2

    optimize(model, loss, len(scenes), steps, VISION_BATCH, rng, report)
    return vision_encoder_of(model)


def all_phrases() -> list[list[str]]:
    """List what can be said of an object: its kind; with its size; with its place in the scene."""
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
    placed = place_objects(scene)
    return {
        phrase
        for item, side in placed
        for phrase in (
            noun_phrase(item, with_size=False),
            noun_phrase(item, with_size=True),
            f"{noun_phrase(item, with_size=False)} {side}",
        )
    }


def _truth(scene: Scene, groups: Sequence[Sequence[str]]) -> torch.Tensor:
    true = true_phrases(scene)
    return torch.tensor([phrase in true for group in groups for phrase in group])


def _phrase_scores(model: CLIPModel, pixels: torch.Tensor, phrases: dict[str, torch.Tensor]) -> torch.Tensor:
    """Score each phrase on each picture.

    Args:
        model: The CLIP.
        pixels: (B, 3, H, W).
        phrases: `input_ids` and `attention_mask`, each (P, T).

    Returns:
        (B, P): a soft maximum over the patches of their cosine with the phrase, times CLIP's temperature.
    """
    states = model.vision_model(pixel_values=pixels).last_hidden_state[
        :, 1:
    ]  # (B, N, d), without the class token
    patches = model.visual_projection(model.vision_model.post_layernorm(states))
    texts = model.text_projection(model.text_model(**phrases).pooler_output)
    cosines = F.normalize(patches, dim=-1) @ F.normalize(texts, dim=-1).t()  # (B, N, P)
    scaled = model.logit_scale.exp().clamp(max=100) * cosines
    return torch.logsumexp(scaled, dim=1) - math.log(scaled.shape[1])


def _contrast(scores: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """Return the mean over true entries of -log(softmax against their row's false ones).

    Args:
        scores: (rows, columns).
        is_true: The same shape; a row may have several, or none.
    """
    false = scores.masked_fill(is_true, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (torch.logaddexp(scores, false) - scores)[is_true].mean()
