"""The captioner's processor: CLIP's image preparation and GPT-2's tokenizer behind one call."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from .requirements_ituning import check_transformers

check_transformers()

from transformers import AutoConfig, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging

from .processor_files_ituning import check_processor_files, seal_processor_files

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
_LONGEST = 32  # short sides, of an image that is resized whole
_HUB_KWARGS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
# A fast tokenizer goes on truncating, padding and reading special tokens as its last caller asked, for all
# threads. Of each, a copy that is called in one way alone, and what it was copied from looked like.
_COPIES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class ITuningProcessor(ProcessorMixin):
    r"""Prepare images, prompts and target captions for an [`ITuningForCaptioning`] model.

    Images go through the PIL image processor, always: torchvision's resizing gives slightly other pixels,
    and a captioner should not depend on what else is installed. They are taken as they are; turn those that a
    camera marked as rotated upright first (`PIL.ImageOps.exif_transpose`, or `ituning_hf.data.load_image`).

    Args:
        image_processor (`CLIPImageProcessorPil`): Prepares images.
        tokenizer (`GPT2Tokenizer`): Prepares text. Without a padding token it gets its end token for one.

    Example:
    ```python
    >>> from PIL import Image
    >>> from ituning_hf import ITuningProcessor
    >>> processor = ITuningProcessor.from_pretrained("my-captioner")  # doctest: +SKIP
    >>> batch = processor(  # doctest: +SKIP
    ...     images=[Image.new("RGB", (64, 48))], captions=[["a black square", "darkness"]]
    ... )
    >>> batch["pixel_values"].shape, batch["input_ids"].shape  # doctest: +SKIP
    (torch.Size([1, 3, 224, 224]), torch.Size([2, 5]))

    ```
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        # What Transformers loads where torchvision is installed.
        if type(image_processor).__name__ == "CLIPImageProcessor":
            image_processor = CLIPImageProcessorPil.from_dict(image_processor.to_dict())
        if tokenizer is not None and tokenizer.vocab_size == 0:
            # Transformers makes one where the tokenizer's files are missing, and says nothing.
            raise ValueError(
                "The tokenizer is empty: its files (tokenizer.json, or vocab.json and merges.txt) are "
                "missing where it was loaded from."
            )
        if tokenizer is not None and tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> ITuningProcessor:
        """Load a saved processor.

        Args:
            pretrained_model_name_or_path: Its folder or Hub id.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and what else
                `ProcessorMixin.from_pretrained` takes.

        Raises:
            OSError: if there is none.
            ValueError: if it is not whole or was changed since it was saved, or would have something read
                from elsewhere.
        """
        name = os.fspath(pretrained_model_name_or_path)
        check_processor_files(name, **{key: kwargs[key] for key in _HUB_KWARGS if key in kwargs})
        try:
            return super().from_pretrained(name, **kwargs)
        except (OSError, ImportError, TypeError):  # not there, not installed, no such keyword
            raise
        # Of a damaged file Transformers and tokenizers raise whatever comes of it, a bare Exception at times.
        except Exception as error:
            raise ValueError(
                f"The processor of {name!r} cannot be loaded ({type(error).__name__}: {error}): copy or "
                "download its files again."
            ) from error

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Store the settings, with fingerprints of them and of the tokenizer's files beside them."""
        super().to_json_file(json_file_path)
        seal_processor_files(json_file_path)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        captions: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: One image or a list of them (PIL, NumPy or torch).
            text: Prompts to go on from, or one for all images: the begin token is put in front, and they are
                padded on the left.
            captions: Targets: a caption, one for each image, or a list for each image. They get a begin and
                an end token, and are padded on the right. An image with fewer captions than the others
                gets rows without labels, so that every image has as many rows.
            max_length: Cut captions to so many tokens, begin and end token included.
            return_tensors: "pt", "np", or None for lists.
            **kwargs: For the image processor.

        Returns:
            `pixel_values` of shape (num_images, 3, image_size, image_size); `input_ids` and
            `attention_mask` of shape (num_images * k, T), image-major; with captions also `labels` of that
            shape, -100 on padding.

        Raises:
            ValueError: if there is nothing to do, or both prompts and captions are given, or a caption is
                empty, or the lists do not fit one another.
        """
        if images is None and text is None and captions is None:
            raise ValueError("Nothing to prepare: give images, text (prompts) or captions (targets).")
        if text is not None and captions is not None:
            raise ValueError(
                "Got both text and captions: text is a prompt for generate, captions are training "
                "targets; give one of them."
            )
        kwargs.pop("padding", None)  # pipelines ask for it, and rows are always padded
        if kwargs and images is None:
            raise TypeError(f"{sorted(kwargs)} are for images, of which none are given.")
        if max_length is not None and captions is None:
            raise ValueError(f"max_length={max_length} is for captions, of which none are given.")
        data: dict[str, Any] = {}
        if images is not None:
            data |= prepare_images(self.image_processor, images, return_tensors=return_tensors, **kwargs)
        if text is not None:
            num_images = len(data["pixel_values"]) if images is not None else 1
            data |= self._prompt_rows([text] * num_images if isinstance(text, str) else list(text))
        if captions is not None:
            rows = self._caption_lists(captions, None if images is None else len(data["pixel_values"]))
            encoded = [self.encode_captions(group, max_length) for group in rows]
            data |= caption_rows(encoded, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id)
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_captions(self, captions: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Tokenize captions: begin token, tokens, end token.

        Special tokens written out in a caption are read as plain text.

        Args:
            captions: The captions.
            max_length: Cut each to so many tokens; the begin and the end token are kept.

        Returns:
            A list of token ids for each caption.

        Raises:
            ValueError: for an empty caption, or a `max_length` that leaves no room for one.
        """
        if max_length is not None and max_length < 3:
            raise ValueError(
                f"max_length is {max_length}, expected 3 or more: begin token, a token, end token."
            )
        if not captions:
            return []
        if empty := [i for i, caption in enumerate(captions) if not caption.strip()]:
            raise ValueError(f"captions {empty[:3]} are empty: remove them, or write something.")
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self._tokenize([caption.strip() for caption in captions])
        room = None if max_length is None else max_length - 2
        return [[begin, *tokens[:room], end] for tokens in ids]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        looks = _looks(self.tokenizer)
        copied, tokenizer = _COPIES.get(self.tokenizer, (None, None))
        if copied != looks:
            tokenizer = copy.deepcopy(self.tokenizer)
            _COPIES[self.tokenizer] = looks, tokenizer
        # Half a surrogate pair, which JSON can hold and no tokenizer takes, becomes a question mark.
        texts = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids

    def _prompt_rows(self, prompts: list[str]) -> dict[str, list[list[int]]]:
        begin, pad = self.tokenizer.bos_token_id, self.tokenizer.pad_token_id
        rows = [[begin, *tokens] for tokens in self._tokenize(prompts)] if prompts else []
        width = max(map(len, rows), default=0)
        return {
            "input_ids": [[pad] * (width - len(row)) + row for row in rows],
            "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
        }

    @staticmethod
    def _caption_lists(captions: Any, num_images: int | None) -> list[list[str]]:
        """Bring the three forms that `captions` may take to one list for each image."""
        if isinstance(captions, str):
            groups = [[captions]]
        elif all(isinstance(caption, str) for caption in captions):
            groups = [[caption] for caption in captions]
        elif any(isinstance(caption, str) for caption in captions):
            raise ValueError("captions mixes strings and lists: give one string, or one list, per image.")
        else:
            groups = [list(group) for group in captions]
        if num_images is not None and len(groups) != num_images:
            raise ValueError(
                f"captions has {len(groups)} entries for {num_images} images: give one caption, or one "
                "list of captions, for each image."
            )
        if not any(groups):
            raise ValueError("captions are all empty lists: give at least one caption.")
        return groups

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str],
        text: str | os.PathLike[str],
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        **hub_kwargs: Any,
    ) -> ITuningProcessor:
        """Take the image preparation of one model and the tokenizer of another.

        Args:
            vision: A CLIP's folder or Hub id.
            text: A GPT-2's folder or Hub id.
            vision_revision: The CLIP's revision on the Hub; give the captioner's, `vision_model_revision` in
                its configuration, and both come from one commit.
            text_revision: The GPT-2's revision on the Hub.
            **hub_kwargs: `token`, `cache_dir`, `local_files_only`.

        Returns:
            The processor. An encoder saved without its image preparation gets CLIP's own at the encoder's
            image size, with a warning.
        """
        of_text = {"revision": text_revision or "main", **hub_kwargs}
        image_processor = load_image_processor(vision, vision_revision, **hub_kwargs)
        return cls(image_processor, AutoTokenizer.from_pretrained(text, **of_text))


def _looks(tokenizer: Any) -> str:
    """Describe what people change of a tokenizer after it is loaded, as far as token ids depend on it."""
    backend = tokenizer.backend_tokenizer
    return f"{backend.normalizer!r} {backend.pre_tokenizer!r} {backend.get_added_tokens_decoder()!r}"


def load_image_processor(
    vision: str | os.PathLike[str], revision: str | None = None, **hub_kwargs: Any
) -> CLIPImageProcessorPil:
    """Take the image preparation of a vision encoder.

    Args:
        vision: A CLIP's folder or Hub id.
        revision: Its revision on the Hub.
        **hub_kwargs: `token`, `cache_dir`, `local_files_only`.

    Returns:
        The image preparation. An encoder saved without one gets CLIP's own at its image size, with a warning.
    """
    hub_kwargs["revision"] = revision or "main"
    try:
        return CLIPImageProcessorPil.from_pretrained(vision, **hub_kwargs)
    except OSError:
        config = AutoConfig.from_pretrained(vision, **hub_kwargs)
        size = getattr(config, "vision_config", config).image_size
        logger.warning(f"{vision} says nothing of image preparation; using CLIP's, at {size} pixels.")
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def prepare_images(image_processor: Any, images: Any, **kwargs: Any) -> BatchFeature:
    """Call an image processor; the ends that it would drop of far too long images are cut off before.

    Args:
        image_processor: A `CLIPImageProcessorPil`. One that does not keep the square in the middle, by its
            own settings or by these keywords, gets all of each image.
        images: What it takes.
        **kwargs: For the image processor.
    """
    own = not kwargs.keys() & {"do_resize", "size", "do_center_crop"}
    if own and image_processor.do_resize and image_processor.do_center_crop:
        images = cut_strips(images) if dict(image_processor.size).get("shortest_edge") else images
    return image_processor(images=images, **kwargs)


def cut_strips(images: Any) -> Any:
    """Cut the ends off images that are far longer than wide.

    CLIP makes an image's short side as long as the encoder's and keeps the square in the middle. Of 30,000
    pixels by 1 it would make 6,720,000 by 224 on the way, 4.5 GB. What is cut off are whole short sides, as
    many from either end, so that resizing meets the same pixels at the same places: exactly where its result
    is a whole number of pixels long, and else to three levels of grey.

    Args:
        images: One or a list of them; only PIL images are looked at.

    Returns:
        The same, none more than 32 times as long as wide.
    """
    if isinstance(images, (list, tuple)):
        return [cut_strips(image) for image in images]
    if not hasattr(images, "crop") or max(images.size) <= _LONGEST * min(images.size):
        return images
    width, height = images.size
    short, long = min(images.size), max(images.size)
    end = short * math.ceil((long / short - _LONGEST) / 2)
    x, y = (end, 0) if width > height else (0, end)
    return images.crop((x, y, width - x, height - y))


def caption_rows(
    encoded: Sequence[Sequence[Sequence[int]]],
    bos_token_id: int,
    pad_token_id: int,
    rows_per_image: int | None = None,
) -> dict[str, list[list[int]]]:
    """Lay tokenized captions out image-major, padded on the right.

    Args:
        encoded: For each image its captions, each a list of token ids.
        bos_token_id: The begin token; it alone stands in a row that only fills up.
        pad_token_id: The padding token.
        rows_per_image: k; the most captions of one image by default.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each of shape (num_images * k, T). Labels are -100 on
        padding and all over the rows that only fill up.
    """
    k = max(map(len, encoded)) if rows_per_image is None else rows_per_image
    rows = [row for group in encoded for row in [*group, *[None] * (k - len(group))]]
    width = max([2, *(len(row) for row in rows if row is not None)])
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        ids = [bos_token_id] if row is None else list(row)
        padding = width - len(ids)
        batch["input_ids"].append(ids + [pad_token_id] * padding)
        batch["attention_mask"].append([1] * len(ids) + [0] * padding)
        labels = [IGNORE_INDEX] if row is None else ids
        batch["labels"].append(labels + [IGNORE_INDEX] * padding)
    return batch


ITuningProcessor.register_for_auto_class()

__all__ = ["ITuningProcessor", "caption_rows", "cut_strips", "load_image_processor", "prepare_images"]
