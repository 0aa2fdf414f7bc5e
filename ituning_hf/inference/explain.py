"""Show which parts of an image the adapters attend to for each word of a caption."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps

from ..captioner.encoders_ituning import encoder_family
from ..captioner.images_ituning import crop_extreme_aspect
from ..data.images import load_image
from ..pages import image_url, render_page
from ..utils.devices import default_dtype, usable_device
from ..utils.errors import UserError
from ..utils.files import draft_of, put_in_place, write_text
from ..utils.terminal import printable
from .captioning import caption, evaluation_mode, to_device
from .loading import load_model, load_processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_SIDE = 640  # pixels of the longer side of the shown image
MAP_SIDE = 256  # of the maps on a page, which the browser enlarges
FRAME_HEIGHT = 760  # pixels
PICTURE_COLUMNS = 4
MAX_PICTURE_RATIO = 3  # of height to width: figures of narrower images would be gigapixels
_MARKS = r".,;:!?\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese have no spaces between words
# A word, a character, or punctuation, which the attention of the word must not include.
_WORD = re.compile(rf"[{_MARKS}]+|[{_CHARACTERS}]|[^\s{_MARKS}{_CHARACTERS}]+")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The attention of each word of a caption over an image. A notebook shows it as a page.

    Args:
        image: The upright image, of mode "RGB".
        caption: The caption.
        words: The words and punctuation marks of the caption, in their order; each Chinese or Japanese
            character is a word.
        maps: Attention weights of shape (words, rows, columns), where rows x columns is the encoder's grid of
            patches: means over the heads, over the chosen layers and over the tokens of each word. Each map
            sums to at most 1; the rest is attention to tokens without a position, such as the class token.
        box: The part of the image that the maps cover, (left, top, right, bottom) in pixels. An image
            processor that crops shows the encoder only a part.
        layers: The indices of the language model's layers.
    """

    image: Image.Image
    caption: str
    words: list[str]
    maps: np.ndarray
    box: tuple[float, float, float, float]
    layers: list[int]

    @property
    def contrasts(self) -> np.ndarray:
        """How much more each word attends to a patch than the mean of all words, or 0; the shape of `maps`.

        Tokens that every word attends to, such as the artefacts of some encoders (Darcet et al., Vision
        Transformers Need Registers, ICLR 2024), have no contrast. The only word of a text has its weights.
        """
        if len(self.maps) == 1:
            return self.maps
        return np.maximum(self.maps - self.maps.mean(axis=0), 0)

    def heatmap(self, word: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Return a word's contrast over the image: bicubic interpolation, 255 at the highest value.

        Args:
            word: The index of the word.
            size: Width and height of the result; those of the image by default.

        Returns:
            An image of mode "L", 0 outside `box`.
        """
        width, height = size or self.image.size
        scale = width / self.image.width, height / self.image.height
        left, top, right, bottom = (round(x * scale[i % 2]) for i, x in enumerate(self.box))
        weights = Image.fromarray(self.contrasts[word].astype(np.float32))
        resized = np.asarray(weights.resize((right - left, bottom - top), Image.Resampling.BICUBIC))
        scaled = np.clip(resized / max(resized.max(), np.finfo(np.float32).tiny), 0, 1)
        result = Image.new("L", (width, height))
        result.paste(Image.fromarray(np.rint(scaled * 255).astype(np.uint8)), (left, top))
        return result

    def overlay(self, word: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Return a word's contrast as colours to paste over the image, of mode "RGBA".

        The arguments are those of `heatmap`.
        """
        heat = self.heatmap(word, size)
        colours = ImageOps.colorize(heat, black="#20007a", mid="#e0301e", white="#ffe34d")
        colours.putalpha(ImageChops.add(heat.point(lambda v: v * 0.45), Image.new("L", heat.size, 75)))
        return colours

    def to_html(self) -> str:
        """Return a page, complete in one file, that shows the map of a word while the pointer is over it."""
        map_size = _fit(self.image.size, MAP_SIDE)
        return render_page(
            "explain.html.jinja",
            caption=self.caption,
            parts=list(_split(self.caption)),
            image=image_url(self.image, IMAGE_SIDE),
            size=self.image.size,
            maps=[image_url(self.overlay(word, map_size)) for word in range(len(self.words))],
            words=self.words,
            layers=self.layers,
        )

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        page = escape(self.to_html())
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {FRAME_HEIGHT}px; border: 0"></iframe>'

    def figure(self) -> Figure:
        """Draw the image once for each word, with its attention, as a Matplotlib figure.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        shown = self.image.resize(_fit(self.image.size, IMAGE_SIDE), Image.Resampling.LANCZOS)
        columns = min(PICTURE_COLUMNS, len(self.words))
        rows = -(-len(self.words) // columns)
        height = 3 * min(shown.height / shown.width, MAX_PICTURE_RATIO) + 0.4  # inches, with the title
        figure = Figure(figsize=(3 * columns, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        if len(self.words) > 1:
            figure.suptitle(printable(self.caption), wrap=True, parse_math=False, fontsize=16)
        for axis in axes:
            axis.axis("off")
        for i, (axis, word) in enumerate(zip(axes, self.words, strict=False)):
            axis.set_title(printable(word), parse_math=False)
            axis.imshow(shown)
            axis.imshow(self.overlay(i, shown.size))
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page (.html), or a picture in a format of Matplotlib (.png, .pdf, .svg).

        An existing file is replaced.

        Raises:
            UserError: The suffix has no format, or Matplotlib is not installed.
        """
        target = Path(path)
        check_format(target)
        if target.suffix == ".html":
            write_text(target, self.to_html())
        else:
            self.figure().savefig(draft_of(target), format=target.suffix[1:], dpi=120)
            put_in_place(target)


def check_format(path: Path) -> None:
    """Raise a UserError unless an explanation can be saved with this suffix."""
    if path.suffix == ".html":
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path.name!r} requires Matplotlib, which is not installed: run pip install 'ituning_hf[viz]', "
            "or write a page (.html)."
        ) from error
    if path.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"The file is {path.name!r}, expected a name that ends in .html, .png, .pdf or .svg.")


def explain(
    model: Any,
    image: str | os.PathLike[str] | bytes | Image.Image,
    processor: Any = None,
    *,
    text: str | None = None,
    prompt: str | None = None,
    layers: Sequence[int] | None = None,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
) -> Explanation:
    """Caption an image, and compute which parts of it the adapters attend to for each word.

    The attention of a word is that of the positions which predict its tokens: that of a token's own position
    is about the next token. docs/explain.md has the measurements of positions and layers.

    Args:
        model: A captioner, or the folder or Hub id of a saved captioner.
        image: A path, the bytes of an image file, or a PIL image.
        processor: The captioner's processor. By default it is loaded from the captioner's folder or Hub id.
        text: The text to explain. By default the captioner generates a caption.
        prompt: The beginning of the generated caption.
        layers: Indices of the language model's layers to average over; by default all with an adapter.
        num_beams: The number of beams of the generated caption; see `caption`.
        max_new_tokens: The maximum number of tokens of the generated caption after the prompt.

    Raises:
        UnreadableImageError: The image cannot be read.
        UserError: The text is empty or too long, a layer has no adapter, or both a text and settings of
            the generation are given.
        OSError: There is no captioner at the given path or Hub id.

    Example:
    ```python
    >>> import ituning_hf
    >>> explanation = ituning_hf.explain("my-captioner", "dog.jpg")  # doctest: +SKIP
    >>> explanation.save("dog.html")  # doctest: +SKIP
    >>> dict(zip(explanation.words, explanation.maps, strict=True))["dog"].shape  # doctest: +SKIP
    (14, 14)

    ```
    """
    given: dict[str, Any] = {"prompt": prompt, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
    if text is not None and (unused := [name for name, value in given.items() if value is not None]):
        raise UserError(f"Got text and {unused[0]}, which is for generated captions: remove one of them.")
    loaded = load_image(image)
    if isinstance(model, str | os.PathLike):
        model = load_model(model, dtype=default_dtype(usable_device(None)))
    processor = processor or load_processor(model.name_or_path, getattr(model.config, "_commit_hash", None))
    chosen = _choose_layers(model.config.adapter_layers, layers)
    if text is None:
        text = str(caption(model, loaded, processor, **given))
    # As the processor does: JSON and command lines can have lone surrogates, which tokenizers refuse.
    text = text.strip().encode("utf-8", errors="replace").decode("utf-8")
    if not text:
        raise UserError("The text to explain is empty: give a text, or train the captioner longer.")
    inputs = dict(processor(images=loaded, captions=[text], return_tensors="pt"))
    del inputs["labels"]
    limit = model.config.text_config.max_position_embeddings
    if (length := inputs["input_ids"].shape[1]) > limit:
        raise UserError(f"The text has {length} tokens, expected at most {limit}: shorten it.")
    attention = _patch_attention(model, inputs, [model.config.adapter_layers.index(i) for i in chosen])
    spans = [found.span() for found in _WORD.finditer(text)]
    tokens = tokens_of_words(processor, text, spans)
    return Explanation(
        image=loaded,
        caption=text,
        words=[text[start:end] for start, end in spans],
        # The position of token t, after BOS, is t + 1. The position before it predicts it.
        maps=np.stack([attention[found].sum(axis=0) / max(len(found), 1) for found in tokens]),
        box=seen_box(processor.image_processor, loaded, *inputs["pixel_values"].shape[-2:]),
        layers=chosen,
    )


def _choose_layers(adapted: Sequence[int], given: Sequence[int] | None) -> list[int]:
    if given is None:
        return list(adapted)
    if not given or not set(given) <= set(adapted):
        raise UserError(
            f"layers is {list(given)}, expected some of the layers with an adapter, {list(adapted)}."
        )
    return sorted(set(given))


def _patch_attention(model: Any, inputs: dict[str, torch.Tensor], indices: Sequence[int]) -> np.ndarray:
    """Return the attention of each position over the patches, of shape (T, rows, columns)."""
    with evaluation_mode(model):
        weights = model.visual_attention(**to_device(inputs, model))  # (1, adapted layers, h, T, N)
    vision = model.config.vision_config
    first = encoder_family(vision).num_prefix_tokens(vision)
    patches = weights[0, list(indices), :, :, first:].float().mean(dim=(0, 1))  # (T, patches)
    height, width = inputs["pixel_values"].shape[-2:]
    grid = height // vision.patch_size, width // vision.patch_size
    return patches.reshape(-1, *grid).cpu().numpy()


def tokens_of_words(processor: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return, for each word, the indices of the text's tokens that have a character of it."""
    offsets = processor.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    ).offset_mapping
    return [
        [i for i, (start, end) in enumerate(offsets) if start < word_end and end > word_start]
        for word_start, word_end in spans
    ]


def seen_box(
    image_processor: Any, image: Image.Image, height: int, width: int
) -> tuple[float, float, float, float]:
    """Return the part of an image that the encoder sees, (left, top, right, bottom) in the image's pixels.

    Args:
        image_processor: It resizes the image and may crop the centre.
        image: The image.
        height: The height of `pixel_values`.
        width: The width of `pixel_values`.
    """
    resized = image
    if image_processor.size.shortest_edge:
        resized = crop_extreme_aspect(image)  # as the processor does; the scale stays the same
    pixels = image_processor(images=resized, do_center_crop=False, return_tensors="np")["pixel_values"]
    x, y = image.width / 2, image.height / 2
    half_width = width * resized.width / pixels.shape[-1] / 2
    half_height = height * resized.height / pixels.shape[-2] / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height, reduced in proportion to at most `side`."""
    factor = min(1, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _split(text: str) -> Iterator[tuple[str, int | None]]:
    """Yield the parts of a text in their order, each with the index of its word, or None between words."""
    position = 0
    for index, found in enumerate(_WORD.finditer(text)):
        yield text[position : found.start()], None
        yield found[0], index
        position = found.end()
