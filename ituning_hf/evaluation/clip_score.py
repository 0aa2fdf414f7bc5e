"""CLIPScore and RefCLIPScore (Hessel et al. 2021, https://arxiv.org/abs/2104.08718).

With the image's embedding v, the caption's c and each reference's r:

    CLIPScore = 2.5 max(cos(v, c), 0)
    RefCLIPScore = harmonic mean of CLIPScore and max(max over r of cos(c, r), 0)

as the authors' code computes them (https://github.com/jmhessel/clipscore): every text, references too,
after the prompt "A photo depicts ", and cut at CLIP's 77 tokens. Published values are of CLIP ViT-B/32, on
a GPU in half precision; here precision is single.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..captioner.processing_ituning import prepare_images
from ..data.images import load_image

_PROMPT = "A photo depicts "
_WEIGHT = 2.5


@torch.inference_mode()
def clip_scores(
    model: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str] | Image.Image],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 64,
) -> dict[str, list[float]]:
    """Score captions by how near a full CLIP finds them to their images, and to what people wrote.

    Args:
        model: The full CLIP, both its halves: a folder or a Hub id. The published values are of
            "openai/clip-vit-base-patch32".
        images: The images, or paths of their files.
        predictions: A caption for each image.
        references: The captions of each image by people, for RefCLIPScore; None does without it.
        revision: Of the CLIP on the Hub.
        device: Where to compute; None takes a GPU if there is one.
        batch_size: How many images, or texts, are embedded at once.

    Returns:
        `clip_score` (0 to 2.5; good captions are near 0.8) and, with references, `ref_clip_score`: the
        value of each image. What is reported is their mean; see `CaptionScores.with_means`.

    Raises:
        ValueError: Not one caption, and one list with a reference or more, for each image; or the CLIP
            is not a whole one.
        OSError: There is no such CLIP.
        UnreadableImageError: An image cannot be read; the message says which.
    """
    _check(images, predictions, references)
    clip = _Clip(str(model), revision, device, batch_size)
    found: dict[str, list[float]] = {"clip_score": []}
    if references is not None:
        found["ref_clip_score"] = []
    for part in _parts(len(images), batch_size):
        captions = clip.embed_texts(predictions[part])  # (B, d)
        cosines = (clip.embed_images(images[part]) * captions).sum(-1)
        scores = _WEIGHT * cosines.clamp(min=0)
        found["clip_score"] += scores.tolist()
        if references is not None:
            nearest = _nearest(clip, captions, references[part]).clamp(min=0)
            harmonic = 2 * scores * nearest / (scores + nearest)
            found["ref_clip_score"] += harmonic.nan_to_num(0).tolist()  # both 0
    return found


class _Clip:
    """A full CLIP, with what prepares its inputs."""

    def __init__(
        self, name: str, revision: str | None, device: str | torch.device | None, batch_size: int
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model, info = CLIPModel.from_pretrained(
                name,
                revision=revision,
                dtype=torch.float32,
                attn_implementation="sdpa",  # a stored one may name a kernel, which would be run
                output_loading_info=True,
            )
            self.image_processor: Any = CLIPImageProcessorPil.from_pretrained(name, revision=revision)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(name, revision=revision)
        except OSError as error:
            raise OSError(
                f"there is no full CLIP, with processor and tokenizer, at {name!r}: {error}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"the model at {name!r} lacks {len(missing)} weights of a full CLIP (first: {missing[:3]}); "
                "CLIPScore needs both halves, as in openai/clip-vit-base-patch32"
            )
        self.model = model.eval().to(device)
        self.max_length = model.config.text_config.max_position_embeddings
        self.batch_size = batch_size

    def embed_images(self, images: Sequence[Any]) -> torch.Tensor:
        """Embed images as unit vectors, shape `(images, d)`."""
        with ThreadPoolExecutor() as threads:
            opened = list(threads.map(load_image, images))
        inputs = prepare_images(self.image_processor, opened, return_tensors="pt")
        hidden = self.model.vision_model(pixel_values=inputs["pixel_values"].to(self.model.device))
        return normalize(self.model.visual_projection(hidden.pooler_output), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts as unit vectors, shape `(texts, d)`."""
        prompts = [_PROMPT + text for text in texts]
        return torch.cat([self._embed(prompts[part]) for part in _parts(len(prompts), self.batch_size)])

    def _embed(self, prompts: list[str]) -> torch.Tensor:
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        hidden = self.model.text_model(**inputs.to(self.model.device))
        return normalize(self.model.text_projection(hidden.pooler_output), dim=-1)


def _nearest(clip: _Clip, captions: torch.Tensor, references: Sequence[Sequence[str]]) -> torch.Tensor:
    """For each caption's embedding, shape `(B, d)`, the cosine of its nearest reference, shape `(B,)`."""
    embedded = clip.embed_texts([text for texts in references for text in texts])
    by_image = embedded.split([len(texts) for texts in references])
    return torch.stack([(own @ caption).max() for own, caption in zip(by_image, captions, strict=True)])


def _parts(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _check(
    images: Sequence[Any], predictions: Sequence[str], references: Sequence[Sequence[str]] | None
) -> None:
    if len(images) == 0 or len(predictions) != len(images):
        raise ValueError(
            f"there are {len(predictions)} predictions for {len(images)} images; give one for each"
        )
    if references is not None and (len(references) != len(images) or not all(references)):
        raise ValueError(
            f"there are references for {sum(map(bool, references))} of {len(images)} images; give each a "
            "list with one caption or more, or no references at all"
        )
