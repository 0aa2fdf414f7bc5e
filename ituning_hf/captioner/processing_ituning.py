"""The captioner's processor: combines the encoder's image processor and the decoder's tokenizer."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image
from transformers import AutoConfig, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import ImageProcessingMixin
from transformers.tokenization_utils_base import LARGE_INTEGER, PaddingStrategy, TruncationStrategy
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file, logging

from .configuration_ituning import HUB_OPTIONS, CaptionerError, reading
from .decoders_ituning import decoder_family
from .encoders_ituning import encoder_family
from .images_ituning import pil_image_processor, prepare_images
from .loss_ituning import IGNORE_INDEX

logger = logging.get_logger(__name__)

_TEXT_OPTIONS = ("padding", "truncation", "max_length", "pad_to_multiple_of")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
# Settings that would make Transformers read tokenizer files from any path, or load another model.
_FILES_ELSEWHERE = {
    PROCESSOR_NAME: {"audio_tokenizer"},
    "tokenizer_config.json": {"fast_tokenizer_files", "gguf_file", "merges", "vocab"},
}
# Calling a fast tokenizer changes its truncation, padding and special-token settings for all threads, so
# captions are tokenized with a copy, cached for each tokenizer together with the state that was copied.
_TOKENIZER_COPIES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class ITuningProcessor(ProcessorMixin):
    r"""Prepare images, prompts and target captions for an [`ITuningForCaptioning`] model.

    Args:
        image_processor: An image processor of Transformers. One that uses torchvision is replaced by its
            variant for PIL; see [`pil_image_processor`].
        tokenizer: A fast tokenizer of Transformers, with the BOS and EOS tokens of the language model's
            configuration. A missing padding token is set to the EOS token. The processor keeps a shallow
            copy, which pads on the left and has no chat template: captions and prompts are plain text.

    Raises:
        CaptionerError: if the tokenizer is empty or lacks the BOS or EOS token, or if the image processor has
            no variant for PIL.

    Example:
    ```python
    >>> from PIL import Image
    >>> from ituning_hf import ITuningProcessor
    >>> processor = ITuningProcessor.from_pretrained("my-captioner")  # doctest: +SKIP
    >>> image = Image.new("RGB", (64, 48))  # doctest: +SKIP
    >>> batch = processor(images=image, captions=[["a black square", "darkness"]])  # doctest: +SKIP
    >>> batch["pixel_values"].shape, batch["input_ids"].shape  # doctest: +SKIP
    (torch.Size([1, 3, 224, 224]), torch.Size([2, 5]))

    ```
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        if tokenizer is not None:
            # Transformers does not report missing files; some classes have a vocabulary of special tokens.
            if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
                raise CaptionerError("The tokenizer is empty: its files are missing (tokenizer.json).")
            if missing := [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]:
                raise CaptionerError(
                    f"The tokenizer has no {missing[0]}, which captions need: set it as in the language "
                    "model's configuration, or use ITuningProcessor.from_vision_text_pretrained."
                )
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            tokenizer = copy.copy(tokenizer)
            tokenizer.padding_side = "left"  # pipelines pad the prompts of a batch themselves
            tokenizer.chat_template = None  # pipelines would advise to use it
        if image_processor is not None and not isinstance(image_processor, PilBackend):
            image_processor = pil_image_processor(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> ITuningProcessor:
        """Load a saved processor.

        Args:
            pretrained_model_name_or_path: The folder or Hub id.
            **kwargs: Passed to `ProcessorMixin.from_pretrained`, such as `revision` and `token`.

        Raises:
            OSError: if it is not found.
            CaptionerError: if a file is damaged, or a setting refers to files outside the folder.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in ("revision", "subfolder", *HUB_OPTIONS) if key in kwargs}
        with reading(f"The processor in {name!r}"):
            for file, settings in _FILES_ELSEWHERE.items():
                path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
                if path is not None and (found := settings & set(json.loads(Path(path).read_text("utf-8")))):
                    raise CaptionerError(
                        f"{path} has {sorted(found)}, which refer to other files: remove them."
                    )
            # Transformers would load a class of any kind.
            pil_image_processor(ImageProcessingMixin.get_image_processor_dict(name, **hub)[0])
            return super().from_pretrained(name, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        captions: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: One image or a list of them: PIL images, paths, open binary files, NumPy arrays or torch
                tensors. The EXIF orientation is applied, and transparent pixels are composited over white.
                In an array or tensor, white is 1 for booleans, 65535 for uint16, 255 or 65535 for other
                integers, and 1 or 255 for floats: the smallest that no value of the image exceeds. The values
                are rounded to 8 bits. With `do_rescale=False`, or a `rescale_factor` other than 1/255, arrays
                are passed on unchanged. URLs and base64 strings are decoded by Transformers, which clips
                16-bit images.
            text: Prompts, or one prompt for all images. A BOS token is prepended; padding is on the left.
            captions: Targets: one caption, one per image, or a list per image. BOS and EOS tokens are added;
                padding is on the right. An image with fewer captions than the others gets rows without
                labels.
            padding (`bool` or `str`, defaults to `True`): Pad to the longest row (`True` or "longest"), to
                `max_length` ("max_length"), or not (`False` or "do_not_pad").
            truncation (`bool` or `str`, *optional*): Whether to truncate rows to `max_length`. By default,
                they are truncated if `max_length` is given.
            max_length (`int`, *optional*): A number of tokens, including BOS and EOS, which are never
                truncated. The default is the tokenizer's `model_max_length`.
            pad_to_multiple_of (`int`, *optional*): Round the padded length up to a multiple of this number.
            return_tensors (`str`, defaults to "pt"): "pt", "np", or None for lists.
            **kwargs: Options of the image processor. Options may also be in the dictionaries `text_kwargs`,
                `images_kwargs` and `common_kwargs`. Except for `return_tensors`, None means the default.

        Returns:
            `pixel_values` of shape (num_images, 3, image_size, image_size); `input_ids` and
            `attention_mask` of shape (num_images * k, T), image-major; with captions, also `labels` of the
            same shape, -100 on padding.

        Raises:
            ValueError: if there is no input, both text and captions, an empty caption, a list whose length is
                not the number of images, an array of an unknown type or range, or no maximum length.
            TypeError: if an option is unknown or has nothing to apply to.
        """
        for group in ("text_kwargs", "images_kwargs", "common_kwargs"):
            kwargs = (kwargs.pop(group, None) or {}) | kwargs
        return_tensors = kwargs.pop("return_tensors", "pt")
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        text_options = {name: kwargs.pop(name) for name in _TEXT_OPTIONS if name in kwargs}
        if images is None and text is None and captions is None:
            raise ValueError("Nothing to prepare: pass images, text (prompts) or captions (targets).")
        if text is not None and captions is not None:
            raise ValueError("Got both text (prompts) and captions (training targets): pass one of them.")
        if unknown := kwargs.keys() - self.image_processor.valid_kwargs.__annotations__.keys():
            raise TypeError(f"Unknown options {sorted(unknown)}: options of text are {list(_TEXT_OPTIONS)}.")
        if kwargs and images is None:
            raise TypeError(f"{sorted(kwargs)} apply to images, but no images were passed.")
        has_rows = text is not None or captions is not None
        if not has_rows and (unused := text_options.keys() - {"padding"}):  # pipelines always pass padding
            raise TypeError(f"{sorted(unused)} apply to text or captions, but neither was passed.")
        data: dict[str, Any] = {}
        if images is not None:
            data |= prepare_images(self.image_processor, images, return_tensors=return_tensors, **kwargs)
        if has_rows:
            num_images = len(data["pixel_values"]) if images is not None else None
            data |= self._rows(text, captions, num_images, **text_options)
        return BatchFeature(data, tensor_type=return_tensors)

    def _rows(
        self,
        text: Any,
        captions: Any,
        num_images: int | None,
        *,
        padding: Any = True,
        truncation: Any = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, list[list[int]]]:
        """Tokenize, truncate and pad the prompts or the captions."""
        padding = PaddingStrategy({True: "longest", False: "do_not_pad"}.get(padding, padding))
        if truncation is None:
            truncation = max_length is not None
        names = {True: "longest_first", False: "do_not_truncate"}
        is_truncated = TruncationStrategy(names.get(truncation, truncation)) != "do_not_truncate"
        if max_length is None:
            max_length = self.tokenizer.model_max_length
        if max_length > LARGE_INTEGER and (is_truncated or padding == "max_length"):
            raise ValueError("The tokenizer has no model_max_length: pass max_length.")
        limit = max_length if is_truncated else None
        if text is not None:
            groups = [
                self._encode_prompts([text] * (num_images or 1) if isinstance(text, str) else text, limit)
            ]
        else:
            groups = [
                self.encode_captions(group, limit) for group in self._caption_lists(captions, num_images)
            ]
        width = 0
        if padding != "do_not_pad":
            longest = max(len(row) for group in groups for row in group)
            multiple = pad_to_multiple_of or 1
            width = max(longest, max_length) if padding == "max_length" else longest
            width = math.ceil(width / multiple) * multiple
        begin, pad = self.tokenizer.bos_token_id, self.tokenizer.pad_token_id
        if captions is not None:
            return caption_rows(groups, begin, pad, width=width)
        (prompts,) = groups
        return {
            "input_ids": [[pad] * (width - len(row)) + row for row in prompts],
            "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in prompts],
        }

    def encode_captions(self, captions: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Tokenize captions and add BOS and EOS tokens.

        Special tokens in a caption are tokenized as plain text.

        Args:
            captions: The captions.
            max_length: Truncate each caption to this number of tokens; BOS and EOS are kept.

        Returns:
            A list of token ids for each caption.
        """
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length is {max_length}, expected 3 or more: BOS, a token, EOS.")
        if not captions:
            return []
        if empty := [i for i, caption in enumerate(captions) if not caption.strip()]:
            raise ValueError(f"captions {empty[:3]} are empty: remove them.")
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self._tokenize([caption.strip() for caption in captions])
        room = None if max_length is None else max_length - 2
        return [[begin, *tokens[:room], end] for tokens in ids]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # Token ids depend on these settings, which users may change after loading.
        backend, special = self.tokenizer.backend_tokenizer, self.tokenizer.all_special_tokens
        key = f"{backend.normalizer!r} {backend.pre_tokenizer!r} {len(self.tokenizer)} {special}"
        copied_key, tokenizer = _TOKENIZER_COPIES.get(self.tokenizer, (None, None))
        if copied_key != key:
            tokenizer = copy.deepcopy(self.tokenizer)
            _TOKENIZER_COPIES[self.tokenizer] = key, tokenizer
        # A lone surrogate, which JSON can contain and tokenizers refuse, becomes a question mark.
        texts = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids

    def _encode_prompts(self, prompts: Sequence[str], max_length: int | None) -> list[list[int]]:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is {max_length}, expected 2 or more: BOS, a token.")
        if not prompts:
            raise ValueError("text is an empty list: pass at least one prompt.")
        room = None if max_length is None else max_length - 1
        return [[self.tokenizer.bos_token_id, *ids[:room]] for ids in self._tokenize(list(prompts))]

    @staticmethod
    def _caption_lists(captions: Any, num_images: int | None) -> list[list[str]]:
        """Convert `captions` from any of its three forms to one list for each image."""
        if isinstance(captions, str):
            groups = [[captions]]
        elif all(isinstance(caption, str) for caption in captions):
            groups = [[caption] for caption in captions]
        elif any(isinstance(caption, str) for caption in captions):
            raise ValueError("captions mixes strings and lists: pass one string, or one list, per image.")
        else:
            groups = [list(group) for group in captions]
        if num_images is not None and len(groups) != num_images:
            raise ValueError(
                f"captions has {len(groups)} entries for {num_images} images: pass one per image."
            )
        if not any(groups):
            raise ValueError("captions are all empty lists: pass at least one caption.")
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
        """Combine the image processor of a vision encoder with the tokenizer of a language model.

        Args:
            vision: The folder or Hub id of a vision encoder. If it has no image processor, a default is used.
            text: The folder or Hub id of a language model.
            vision_revision: The revision of the vision encoder on the Hub.
            text_revision: The revision of the language model on the Hub.
            **hub_kwargs: `token`, `cache_dir`, `local_files_only`.

        Raises:
            OSError: if one of them is not found.
            CaptionerError: if a file is damaged, or the image processor or the tokenizer does not fit its
                model.
        """
        image_processor = load_image_processor(vision, vision_revision, **hub_kwargs)
        return cls(image_processor, load_tokenizer(text, text_revision, **hub_kwargs))


def load_image_processor(
    vision: str | os.PathLike[str], revision: str | None = None, **hub_kwargs: Any
) -> Any:
    """Load the image processor of a vision encoder; if it has none, warn and use its family's default.

    Raises `CaptionerError` if it cannot be used, or prepares images that the encoder does not accept.
    """
    hub_kwargs["revision"] = revision or "main"
    config = AutoConfig.from_pretrained(vision, trust_remote_code=False, **hub_kwargs)
    config = getattr(config, "vision_config", config)  # of a model with a text encoder
    family = encoder_family(config)
    optional = {"_raise_exceptions_for_missing_entries": False, **hub_kwargs}
    if not any(cached_file(vision, name, **optional) for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        logger.warning(f"{vision} has no image processor; using the default of its architecture.")
        return family.image_processor(config)
    with reading(f"The image processor of {vision}"):
        settings, _ = ImageProcessingMixin.get_image_processor_dict(vision, **hub_kwargs)
        image_processor = pil_image_processor(settings, family.image_processor_class)
        # Not a square: the size of prepared images must not depend on the aspect ratio.
        image = Image.new("RGB", (97, 64))
        pixel_values = prepare_images(image_processor, image, return_tensors="pt")["pixel_values"]
    try:
        family.check_pixels(config, pixel_values)
    except ValueError as error:
        raise CaptionerError(
            f"The image processor of {vision} prepares images of shape {tuple(pixel_values.shape[1:])}, "
            f"which its encoder does not accept: correct its {IMAGE_PROCESSOR_NAME}."
        ) from error
    return image_processor


def load_tokenizer(text: str | os.PathLike[str], revision: str | None = None, **hub_kwargs: Any) -> Any:
    """Load the tokenizer of a language model.

    Its special tokens become those of the model's configuration, with which `generate` begins, ends and pads.
    Some tokenizers have no BOS token, and a chat-tuned model's may have another EOS token.

    Raises `CaptionerError` if the tokenizer cannot be read, or has other tokens than the model.
    """
    hub_kwargs["revision"] = revision or "main"
    config = AutoConfig.from_pretrained(text, trust_remote_code=False, **hub_kwargs)
    family = decoder_family(config)
    family.check_config(config)
    if os.path.isdir(text) and not any(Path(text, name).exists() for name in _TOKENIZER_FILES):
        raise CaptionerError(f"{text} has no tokenizer (such as tokenizer.json): copy it to the folder.")
    with reading(f"The tokenizer of {text}"):
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False, **hub_kwargs)
    # Special tokens may exceed the embeddings, such as one for images: captions never contain them.
    added = [i for i, token in tokenizer.added_tokens_decoder.items() if not token.special]
    if (size := max([tokenizer.vocab_size, *(i + 1 for i in added)])) > config.vocab_size:
        raise CaptionerError(
            f"The tokenizer of {text} has {size} tokens, its language model only {config.vocab_size}: give a "
            "folder in which they belong together."
        )
    for name, wanted in family.special_tokens(config).items():
        ids = wanted if isinstance(wanted, list) else [wanted]
        if ids[0] >= len(tokenizer):
            raise CaptionerError(
                f"The configuration of {text} has {name}={ids[0]}, its tokenizer only {len(tokenizer)} "
                "tokens: give a folder in which they belong together."
            )
        if getattr(tokenizer, name) in ids:
            continue
        token = tokenizer.convert_ids_to_tokens(ids[0])
        added_token = tokenizer.added_tokens_decoder.get(ids[0])
        if added_token is None or not added_token.special:
            raise CaptionerError(
                f"The configuration of {text} has {name}={ids[0]}, which is the word {token!r}, and captions "
                "would lack it. In a copy of the model, set it to the id of a special token."
            )
        tokenizer.add_special_tokens({name.removesuffix("_id"): token})
    return tokenizer


def caption_rows(
    encoded: Sequence[Sequence[Sequence[int]]],
    bos_token_id: int,
    pad_token_id: int,
    rows_per_image: int | None = None,
    width: int | None = None,
) -> dict[str, list[list[int]]]:
    """Build an image-major batch from the tokenized captions of each image, padded on the right.

    `rows_per_image` is k, by default the largest number of captions of an image; `width` is T, by default the
    length of the longest row. Returns `input_ids`, `attention_mask` and `labels`, each of shape (num_images *
    k, T). Labels are -100 on padding and in rows without a caption, which contain only the BOS token.
    """
    k = max(map(len, encoded)) if rows_per_image is None else rows_per_image
    rows = [row for group in encoded for row in [*group, *[None] * (k - len(group))]]
    if width is None:
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

__all__ = [
    "ITuningProcessor",
    "caption_rows",
    "load_image_processor",
    "load_tokenizer",
]
