"""CLIPScore and RefCLIPScore (Hessel et al. 2021, https://arxiv.org/abs/2104.08718).

With the image's embedding v, the caption's embedding c and each reference's embedding r:

    CLIPScore = 2.5 max(cos(v, c), 0)
    RefCLIPScore = harmonic mean of CLIPScore and max(max over r of cos(c, r), 0)

as in the authors' code (https://github.com/jmhessel/clipscore): every text, references too, follows the
prompt "A photo depicts " and is cut at CLIP's 77 tokens. Published values use CLIP ViT-B/32 on a GPU in half
precision; here the precision is float32.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..captioner.images_ituning import prepare_images
from ..data.columns import CaptionedImage
from ..data.images import load_image
from ..utils.devices import usable_device
from ..utils.errors import UserError
from .metrics import check_captions

_PROMPT = "A photo depicts "
_WEIGHT = 2.5


@torch.inference_mode()
def clip_scores(
    model: str,
    images: Sequence[str | Image.Image | CaptionedImage],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    device: str | torch.device | None = None,
    batch_size: int = 64,
) -> dict[str, list[float]]:
    """Score captions by their similarity to their images and to human captions, as a full CLIP measures it.

    Args:
        model: A full CLIP, vision and text model: a folder or a Hub id. Published values use
            "openai/clip-vit-base-patch32".
        images: The images, their paths, or the images of a dataset.
        predictions: A caption for each image.
        references: The human captions of each image.
        device: The device; None uses the best available one.
        batch_size: Images per batch, with their captions.

    Returns:
        `clip_score` (0 to 2.5; good captions score about 0.8) and `ref_clip_score`: the value of each image.
        Papers report the mean.

    Raises:
        UserError: The numbers of captions differ, or the CLIP is not a full one.
        OSError: There is no such CLIP.
        UnreadableImageError: An image cannot be read; the message names it.
    """
    check_captions(predictions, references)
    clip = _Clip(model, usable_device(device))
    found: dict[str, list[float]] = {"clip_score": [], "ref_clip_score": []}
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        captions = clip.embed_texts(predictions[batch])  # (B, d)
        cosines = (clip.embed_images(images[batch]) * captions).sum(-1)
        scores = _WEIGHT * cosines.clamp(min=0)
        found["clip_score"] += scores.tolist()
        nearest = _nearest(clip, captions, references[batch]).clamp(min=0)
        harmonic = 2 * scores * nearest / (scores + nearest)
        found["ref_clip_score"] += harmonic.nan_to_num(0).tolist()  # not a number if both are 0
    return found


class _Clip:
    """A CLIP with vision and text model, and its image processor and tokenizer."""

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            model, info = CLIPModel.from_pretrained(
                name,
                dtype=torch.float32,
                attn_implementation="sdpa",  # a stored implementation could name code on the Hub
                output_loading_info=True,
            )
            self.image_processor: Any = CLIPImageProcessorPil.from_pretrained(name)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(name)
        except OSError as error:
            raise OSError(
                f"there is no full CLIP with image processor and tokenizer at {name!r}: {error}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise UserError(
                f"the model at {name!r} lacks {len(missing)} weights of a full CLIP (first: {missing[:3]}); "
                "CLIPScore requires a vision and a text model, as in openai/clip-vit-base-patch32."
            )
        self.model = model.eval().to(device)
        self.max_length = model.config.text_config.max_position_embeddings

    def embed_images(self, images: Sequence[Any]) -> torch.Tensor:
        """Embed images as unit vectors, shape `(images, d)`."""
        with ThreadPoolExecutor() as threads:
            loaded = list(threads.map(_load, images))
        inputs = prepare_images(self.image_processor, loaded, return_tensors="pt")
        hidden = self.model.vision_model(pixel_values=inputs["pixel_values"].to(self.model.device))
        return normalize(self.model.visual_projection(hidden.pooler_output), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts as unit vectors, shape `(texts, d)`."""
        prompts = [_PROMPT + text for text in texts]
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        hidden = self.model.text_model(**inputs.to(self.model.device))
        return normalize(self.model.text_projection(hidden.pooler_output), dim=-1)


def _load(image: Any) -> Image.Image:
    return image.load() if isinstance(image, CaptionedImage) else load_image(image)


def _nearest(clip: _Clip, captions: torch.Tensor, references: Sequence[Sequence[str]]) -> torch.Tensor:
    """Return each caption's cosine with its nearest reference, shape `(B,)`; `captions` are `(B, d)`."""
    embedded = clip.embed_texts([text for texts in references for text in texts])
    by_image = embedded.split([len(texts) for texts in references])
    return torch.stack([(own @ caption).max() for own, caption in zip(by_image, captions, strict=True)])
