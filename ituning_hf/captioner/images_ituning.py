"""Images for the vision encoder: upright, RGB, 8 bits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import PilBackend

from .configuration_ituning import CaptionerError

MAX_ASPECT_RATIO = 32
_TILE = 1024  # the side, in pixels, of the part that is converted at a time


def pil_image_processor(settings: Mapping[str, Any], default: Any = None) -> Any:
    """Build an image processor that resizes with PIL.

    torchvision resizes slightly differently, and a captioner must not depend on which packages are installed.

    Args:
        settings: As in `preprocessor_config.json`, of any version. `image_processor_type` is the name of an
            image processor of Transformers; its PIL variant is used. Unknown settings are ignored.
        default: The class for settings that do not name one.

    Raises:
        CaptionerError: if Transformers has no PIL variant of this image processor.
    """
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    cls: Any = default
    if name is not None:
        base = str(name).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
        cls = getattr(transformers, f"{base.removesuffix('Pil')}Pil", None)
    if cls is None or not issubclass(cls, PilBackend):
        raise CaptionerError(
            f"image_processor_type is {name!r}, but Transformers has no such image processor for PIL."
        )
    return cls(**{key: settings[key] for key in settings.keys() & cls.valid_kwargs.__annotations__.keys()})


def prepare_images(image_processor: Any, images: Any, **kwargs: Any) -> Any:
    """Convert images to 8-bit RGB, and call an image processor.

    Extreme aspect ratios are cropped first if the image processor crops to the central square.

    Args:
        image_processor: A PIL image processor.
        images: An image or a list of them; see `ITuningProcessor.__call__`.
        **kwargs: Passed to the image processor.

    Returns:
        The `BatchFeature` of the image processor.

    Raises:
        ValueError: if the type or the range of an array is unknown.
    """
    is_changed = kwargs.keys() & {"do_resize", "size", "do_center_crop"}
    keeps_square = image_processor.do_resize and image_processor.do_center_crop and not is_changed
    is_cropped = keeps_square and dict(image_processor.size).keys() == {"shortest_edge"}
    # Without rescaling, or with another factor, the caller has chosen the range of the values.
    do_rescale = kwargs.get("do_rescale", image_processor.do_rescale)
    factor = kwargs.get("rescale_factor", image_processor.rescale_factor)
    converts_arrays = do_rescale and math.isclose(factor, 1 / 255, rel_tol=1e-3)

    def convert(image: Any) -> Any:
        if isinstance(image, (list, tuple)):
            return [convert(item) for item in image]
        is_path = isinstance(image, (str, os.PathLike)) and os.path.isfile(image)
        if is_path or hasattr(image, "read"):
            with Image.open(image) as opened:
                return convert(opened)
        if isinstance(image, Image.Image):
            image = upright(image)
            if image.mode != "RGB" or image.has_transparency_data:
                image = to_rgb(image)
            return crop_extreme_aspect(image) if is_cropped else image
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()  # NumPy has no bfloat16
            image = (image.float() if image.is_floating_point() else image).numpy()
        if not converts_arrays or not isinstance(image, np.ndarray):
            return image
        return [_array_to_8_bits(item) for item in image] if image.ndim == 4 else _array_to_8_bits(image)

    return image_processor(images=convert(images), **kwargs)


def _array_to_8_bits(values: np.ndarray) -> Any:
    """Scale an image of any type to 8 bits. A grey image without an axis of channels becomes a PIL image."""
    if values.size == 0:
        raise ValueError("The image has no pixels.")
    if values.dtype.kind not in "buif":
        raise ValueError(f"An image has type {values.dtype}, expected integers, floats or booleans.")
    if values.dtype != np.uint8:
        low, high = values.min(), values.max()
        white = _white_level(values.dtype, low, high)
        if white is None:
            expected = "0..1 or 0..255" if values.dtype.kind == "f" else "0..255 or 0..65535"
            raise ValueError(
                f"An image of type {values.dtype} has values from {low:.6g} to {high:.6g}, expected "
                f"{expected}. Scale the values to such a range; pass normalized images to the model directly."
            )
        values = _to_8_bits(values.astype(np.float64), 0, white)
    return Image.fromarray(values) if values.ndim == 2 else values


def _white_level(dtype: np.dtype, low: float, high: float) -> int | None:
    """Return the smallest possible value of white that no value of an image exceeds, or None.

    Floats have the range 0..1 or 0..255, up to rounding errors. Integers other than uint8 and uint16 come
    from 8-bit or 16-bit originals.
    """
    if dtype.kind == "u" and dtype.itemsize == 2:
        return 65535
    error = 1e-3 if dtype.kind == "f" else 0
    for white in {"b": (1,), "f": (1, 255)}.get(dtype.kind, (255, 65535)):
        if -error * white <= low and high <= (1 + error) * white:
            # Normalized images, unlike photographs in 0..255, have a maximum below 3.
            return None if dtype.kind == "f" and white == 255 and high < 3 else white
    return None


def crop_extreme_aspect(image: Image.Image) -> Image.Image:
    """Crop both ends of an image whose aspect ratio is more than 32.

    The image processor resizes the short side, and then crops to the central square: 30,000 x 1 pixels would
    take 4.5 GB. Both ends are cropped by the same integer multiple of the short side, so the central square
    is resized from the same pixels: exactly if the resized length is an integer, else within 3 grey levels.
    """
    width, height = image.size
    short, long = min(image.size), max(image.size)
    if long <= MAX_ASPECT_RATIO * short:
        return image
    end = short * math.ceil((long / short - MAX_ASPECT_RATIO) / 2)
    x, y = (end, 0) if width > height else (0, end)
    return image.crop((x, y, width - x, height - y))


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    image.load()  # outside the `try`: a truncated file is not a broken EXIF block
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        return image  # with a broken EXIF block, the orientation is unknown


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to a new 8-bit RGB image; transparent pixels are composited over white.

    Grey values of more than 8 bits are scaled, not clipped; see `_white_level`. Other ranges are scaled from
    minimum to maximum. Tile by tile, because the conversion takes up to 40 bytes per pixel.
    """
    if 0 in image.size:
        raise ValueError("The image has no pixels.")
    convert = _grey_converter(image) if image.mode.startswith(("I", "F")) else _over_white
    rgb = Image.new("RGB", image.size)
    for corner, tile in _tiles(image):
        rgb.paste(convert(tile), corner)
    return rgb


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yield the tiles of an image, each with the position of its upper left corner."""
    for top in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            right, bottom = min(left + _TILE, image.width), min(top + _TILE, image.height)
            yield (left, top), image.crop((left, top, right, bottom))


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _grey_converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return a function that scales a tile of a grey image to 8 bits, by the range of the complete image."""
    ranges = [(values.min(), values.max()) for _, tile in _tiles(image) for values in [_values(tile)]]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    white = _white_level(np.asarray(image.crop((0, 0, 1, 1))).dtype, low, high)
    black, white = (low, high) if white is None else (0, white)
    return lambda tile: Image.fromarray(_to_8_bits(_values(tile), black, white))


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)


def _to_8_bits(values: np.ndarray, black: float, white: float) -> np.ndarray:
    scale = 255 / ((white - black) or 1.0)  # a uniform image outside the known ranges becomes black
    return np.rint(np.clip((values - black) * scale, 0, 255)).astype(np.uint8)


__all__ = ["crop_extreme_aspect", "pil_image_processor", "prepare_images", "to_rgb", "upright"]
