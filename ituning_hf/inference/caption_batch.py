"""Caption the images of a table, batch by batch: for Ray Data, `datasets` and pandas."""

from __future__ import annotations

import os
import reprlib
import sys
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..utils.errors import UserError
from .captioning import ImageSource, iter_captions
from .loading import load_captioner


class CaptionBatch:
    """Captions the images of a batch: a dict of NumPy arrays, a dict of lists, or a pandas DataFrame.

    The result is the same type of batch with two more columns of strings: the captions, and why images could
    not be read (empty for the others). An unreadable image has an empty caption, and does not affect others.

    Args:
        model: The folder or Hub id of a saved captioner. It is loaded at the first batch, so a `CaptionBatch`
            can be pickled and sent to other machines; pickling never includes the loaded model.
        image_column: The column of images: paths, bytes of image files, dicts of "bytes" and "path" (as in
            `datasets.Image(decode=False)`), PIL images, or NumPy arrays of shape (height, width) or (height,
            width, channels), usually of type uint8.
        caption_column: The column of captions to add.
        error_column: The column of errors to add.
        load_options: Arguments of `load_captioner`, such as `{"device": "cuda", "dtype": "bfloat16"}`.
        **caption_options: Arguments of `iter_captions`: `prompt`, `batch_size` (the number of images that the
            captioner processes at a time; 16 by default), `num_beams`, `max_new_tokens` and so on.

    Example:
    ```python
    >>> from ituning_hf import CaptionBatch
    >>> captioned = dataset.map(  # datasets.Dataset
    ...     CaptionBatch("my-captioner"), batched=True
    ... )  # doctest: +SKIP
    >>> captioned = dataset.map_batches(  # ray.data.Dataset
    ...     CaptionBatch, fn_constructor_args=("my-captioner",), concurrency=8, num_gpus=1, batch_size=256
    ... )  # doctest: +SKIP
    >>> captioned = CaptionBatch("my-captioner")(frame)  # pandas.DataFrame # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        image_column: str = "image",
        caption_column: str = "caption",
        error_column: str = "caption_error",
        load_options: dict[str, Any] | None = None,
        **caption_options: Any,
    ) -> None:
        if "num_captions" in caption_options:
            raise TypeError("CaptionBatch writes one caption for each image: for several, use iter_captions.")
        self.model, self.image_column = os.fspath(model), image_column
        self.caption_column, self.error_column = caption_column, error_column
        self.load_options, self.caption_options = load_options or {}, caption_options

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns of captions and errors.

        Raises:
            UserError: The batch has no column of images, or already has one of the columns to add.
            OSError: There is no captioner at the given path or Hub id.
        """
        if self.image_column not in batch:
            raise UserError(
                f"there is no column {self.image_column!r}, only {', '.join(map(repr, batch))}: set "
                "image_column to the column of images."
            )
        if present := [name for name in (self.caption_column, self.error_column) if name in batch]:
            raise UserError(
                f"the batch already has a column {present[0]!r}, which is not replaced: remove it, or set "
                "caption_column and error_column to other names."
            )
        captions, errors = self._caption(_cells(batch, self.image_column))
        columns: dict[str, Any] = {self.caption_column: captions, self.error_column: errors}
        pandas = sys.modules.get("pandas")  # not imported unless the caller has a frame
        if pandas is not None and isinstance(batch, pandas.DataFrame):
            return batch.assign(**columns)
        if not isinstance(batch, dict):  # a lazy batch of `datasets.map`, which adds the columns to its own
            return columns
        if isinstance(batch[self.image_column], np.ndarray):
            columns = {name: np.array(texts, dtype=np.str_) for name, texts in columns.items()}
        return {**batch, **columns}

    def _caption(self, cells: list[Any]) -> tuple[list[str], list[str]]:
        """Return the caption and the error of each image; one of them is empty."""
        sources = [_image_source(cell) for cell in cells]
        valid = [source for source, _ in sources if source is not None]
        results = iter(iter_captions(*self._captioner, valid, **self.caption_options))
        captions, errors = [], []
        for source, reason in sources:
            result = None if source is None else next(results)
            captions.append(result.captions[0] if result and result.captions else "")
            errors.append(reason if result is None else result.error or "")
        return captions, errors

    @cached_property
    def _captioner(self) -> tuple[ITuningForCaptioning, ITuningProcessor]:
        return load_captioner(self.model, **self.load_options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_captioner"}


def _cells(batch: Any, column: str) -> list[Any]:
    table = getattr(batch, "pa_table", None)
    if table is not None and pa.types.is_struct(table.schema.field(column).type):
        # An image that `datasets.map` has decoded is encoded anew, as PNG, in the dataset that it returns.
        return table[column].to_pylist()
    return list(batch[column])


def _image_source(cell: Any) -> tuple[ImageSource | None, str]:
    """Return the image of a cell for `iter_captions`, or None and the reason why there is no image."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, np.ndarray):
        try:
            return Image.fromarray(cell[..., 0] if cell.shape[2:] == (1,) else cell), ""
        except Exception as error:  # TypeError, ValueError, and others for unusual shapes
            return None, f"an array of {cell.dtype} and shape {cell.shape} is not an image ({error})"
    if isinstance(cell, (bytearray, memoryview)):
        cell = bytes(cell)
    if isinstance(cell, (str, os.PathLike, bytes, Image.Image)):
        return cell, ""
    return None, f"{reprlib.repr(cell)} is not an image"
