"""What the app computes for a request."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..captioner.configuration_ituning import CaptionerError
from ..data.columns import CaptionedImage, FilePart
from ..data.images import UnreadableImageError, load_image
from ..inference.captioning import caption, iter_captions, search_options
from ..inference.explain import explain
from ..inference.outputs import TableFile, to_column
from ..utils.errors import UserError
from .captioners import Captioner

MAX_BEAMS = 10
MAX_TOKENS = 200
MAX_FILES = 500
_MAX_NAMES = 5  # of unreadable files in one line
_THUMBNAIL = (480, 480)  # pixels
_BATCH_SIZE = 8


class AppRequests:
    """The functions behind the app's buttons; their errors are shown in the browser.

    Args:
        captioners: The captioners by name.
    """

    def __init__(self, captioners: Mapping[str, Captioner]) -> None:
        self.captioners = captioners
        self.folder = tempfile.TemporaryDirectory(prefix="ituning-app-")  # removed when the process ends

    def defaults(self, name: str) -> tuple[int, int]:
        """Return a captioner's own numbers of beams and of tokens, as far as the app allows them."""
        own = self.captioners[name].model.generation_config
        beams = search_options(self.captioners[name].model, 1, None, None, {})["num_beams"]
        return min(beams, MAX_BEAMS), min(own.max_new_tokens or MAX_TOKENS, MAX_TOKENS)

    def caption(
        self,
        name: str,
        path: str | None,
        num_beams: int,
        num_captions: int,
        prompt: str,
        max_new_tokens: int,
    ) -> list[str]:
        """Return different captions of an image, the most likely first.

        Args:
            name: The captioner.
            path: The image file, or None if there is none.
            num_beams: As for `ituning_hf.caption`, as are the following arguments.
            num_captions: The number of captions.
            prompt: The beginning of the captions, or an empty text.
            max_new_tokens: The maximum length.
        """
        with _errors_in_browser():
            _check_beams(num_beams, num_captions)
            captions = caption(
                self.captioners[name].model,
                [_load(path)],
                self.captioners[name].processor,
                prompt=prompt or None,
                num_captions=num_captions,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
            )
        found = captions[0]
        return [found] if isinstance(found, str) else list(dict.fromkeys(found))

    def explain(self, name: str, path: str | None, text: str) -> str:
        """Return a page with the attention maps of the words of a text."""
        with _errors_in_browser():
            captioner = self.captioners[name]
            return explain(captioner.model, _load(path), captioner.processor, text=text).to_html()

    def caption_files(
        self,
        name: str,
        paths: Sequence[str] | None,
        num_beams: int,
        num_captions: int,
        prompt: str,
        max_new_tokens: int,
        *,
        progress: Callable[[tuple[int, int]], Any],
    ) -> tuple[list[tuple[Image.Image, str]], str, str, str]:
        """Caption files; those that cannot be read are left out with a warning.

        Args:
            name: The captioner.
            paths: The files.
            num_beams: As for `caption`, as are the following arguments.
            num_captions: The number of captions for each image.
            prompt: The beginning of the captions, or an empty text.
            max_new_tokens: The maximum length.
            progress: Receives the number of captioned images and of all.

        Returns:
            A thumbnail of each image with its captions, the paths of a JSON lines and a CSV file, and a line
            that names the files that cannot be read, empty if there are none.
        """
        with _errors_in_browser():
            if not paths or len(paths) > MAX_FILES:
                raise UserError(f"Got {len(paths or ())} images, expected 1 to {MAX_FILES}.")
            _check_beams(num_beams, num_captions)
            images = [
                CaptionedImage(os.path.basename(path), (), FilePart(Path(path), 0, -1)) for path in paths
            ]
            results = iter_captions(
                self.captioners[name].model,
                self.captioners[name].processor,
                images,
                prompt=prompt or None,
                num_captions=num_captions,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                batch_size=_BATCH_SIZE,
            )
            shown, rows, unreadable = [], [], []
            for i, (image, result) in enumerate(zip(images, results, strict=True)):
                progress((i, len(images)))
                if result.error is not None:
                    gr.Warning(escape(result.error))
                    unreadable.append(image.name)
                else:
                    thumbnail = image.load()
                    thumbnail.thumbnail(_THUMBNAIL)
                    shown.append((thumbnail, "\n".join(result.captions)))
                    rows.append((image.name, result.captions))
        jsonl, csv = self._write(rows)
        return shown, jsonl, csv, _unreadable_line(unreadable, len(images))

    def _write(self, rows: list[tuple[str, list[str]]]) -> list[str]:
        """Write the captions as `ituning caption` does, and return the paths of the files."""
        folder, names = tempfile.mkdtemp(dir=self.folder.name), to_column(name for name, _ in rows)
        paths = [Path(folder, f"captions{suffix}") for suffix in (".jsonl", ".csv")]
        for path in paths:
            TableFile(path, overwrite=False).write_all(names, rows)
        return [str(path) for path in paths]


def _load(path: str | None) -> Image.Image:
    if path is None:
        raise UserError("There is no image: upload, paste or take one first.")
    return load_image(path, os.path.basename(path))


def _check_beams(num_beams: int, num_captions: int) -> None:
    if num_captions > num_beams:
        raise UserError(
            f"Captions is {num_captions} and Beams is {num_beams}: raise Beams, or lower Captions."
        )


def _unreadable_line(names: Sequence[str], num_images: int) -> str:
    if not names:
        return ""
    others = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    shown = ", ".join(names[:_MAX_NAMES])
    return f"{len(names)} of {num_images} images could not be read: {shown}{others}"


@contextmanager
def _errors_in_browser() -> Iterator[None]:
    """Show errors of the user's input in the browser, as text: names of files are not HTML."""
    try:
        yield
    except (CaptionerError, UnreadableImageError, UserError) as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error
