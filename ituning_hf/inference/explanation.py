"""An explained caption: words, their attention, and its display as a page or a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ..pages import image_url, render_page
from ..utils.errors import UserError
from ..utils.files import draft_of, put_in_place, write_text
from ..utils.terminal import printable

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


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height, reduced in proportion to at most `side`."""
    factor = min(1, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def find_words(text: str) -> list[tuple[int, int]]:
    """Return where the words and punctuation marks of a text begin and end."""
    return [found.span() for found in _WORD.finditer(text)]


def _split(text: str) -> Iterator[tuple[str, int | None]]:
    """Yield the parts of a text in their order, each with the index of its word, or None between words."""
    position = 0
    for index, (start, end) in enumerate(find_words(text)):
        yield text[position:start], None
        yield text[start:end], index
        position = end
