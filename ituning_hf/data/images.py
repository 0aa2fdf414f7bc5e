"""Reading photographs as people have them: rotated, transparent, 16-bit, broken."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..utils.terminal import printable

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# What photographs come in. Pillow knows many more: for EPS it starts Ghostscript, and few look for faults in
# the decoders of the others. HEIF takes a plug-in that the caller registers.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM")

# The value that means white, by Pillow mode. Where several are in use, the first that no value of the
# image exceeds is taken: floats come as 0..1 and 0..255, integers from 8-bit and from 16-bit originals.
_WHITE_LEVELS: dict[str, tuple[float, ...]] = {
    "I;16": (65535,),
    "I;16L": (65535,),
    "I;16B": (65535,),
    "I;16N": (65535,),
    "I": (255, 65535),
    "F": (1, 255),
}

_TILE = 1024  # pixels, of the side of what is converted at a time


class UnreadableImageError(ValueError):
    """An image that cannot be read; the one-line text says which, why, and what to do."""


def load_image(source: str | os.PathLike[str] | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Decode an image into upright 8-bit RGB.

    A file's format is told by its content, whatever its name is: AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF and
    WebP, and HEIF where a plug-in of Pillow's is registered.

    The EXIF orientation is applied. Transparent pixels are composited over white. Of an animation,
    the first frame is taken. Greyscale of more than 8 bits is scaled, not clipped: white is 65535
    in 16 bits, the first of 255 and 65535 that no value exceeds in 32-bit integers, and of 1 and
    255 in floats; what fits none of these is stretched from its own minimum to its own maximum.
    Safe to call from several threads.

    Args:
        source: A file's path, a file's bytes, or an image that is already open (it is left open).
        name: What messages call the image; by default its path.

    Returns:
        A new, fully decoded image of mode "RGB", of the source's size once upright.

    Raises:
        UnreadableImageError: The file is missing, a folder, a pipe or a device, empty, no image, cut short,
            or has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    try:
        if isinstance(source, Image.Image):
            _require_pixels(source)
            return _to_rgb(_upright(source))
        # By file and not by name: of a file whose name it knows, Pillow 13 maps uncompressed data
        # into memory, and scrambles TIFFs that are stored on their side.
        with _open(source) as file, Image.open(file, formats=_formats()) as image:
            _check_size(image)
            return _to_rgb(_upright(image))
    # Decoders raise whatever their parser trips over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        problem = f"cannot read {name or _name(source)}: {_explain(error, source)}"
        raise UnreadableImageError(printable(problem)) from error


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files below a folder, recursively, sorted by path.

    Files are told by `IMAGE_SUFFIXES`, in any case; broken links, pipes and devices are among them, since
    whoever put them there will want to be told. Hidden files and folders are left out: they hold
    thumbnails, checkpoints and the "._" twins that macOS writes, not photographs.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


class _NotAFileError(OSError):
    """A pipe, for whose content one would wait for ever, or a device, whose content has no end."""


def open_file(source: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file to read its bytes, and nothing that is none.

    Raises:
        OSError: It is a folder, a pipe or a device, or cannot be opened.
    """
    mode = os.stat(source).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _NotAFileError
    return open(source, "rb")


def _open(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_file(source)


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _require_pixels(image: Image.Image) -> None:
    if 0 in image.size:
        raise ValueError("it has no pixels")


def _check_size(image: Image.Image) -> None:
    _require_pixels(image)
    # Pillow only warns between one and two times its limit. Turning that warning into an error
    # would change the filters of every thread, so its check is repeated here as an error.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # outside the `try`: a file cut short is no fault of its EXIF block
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        return image  # a broken EXIF block says nothing about the orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    """Make a new RGB image, tile by tile: on the way a pixel takes up to 40 bytes."""
    convert = _grey_converter(image) if image.mode in _WHITE_LEVELS else _over_white
    rgb = Image.new("RGB", image.size)
    for corner, tile in _tiles(image):
        rgb.paste(convert(tile), corner)
    return rgb


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Cut an image into tiles, each with the place of its upper left corner."""
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
    """Return what scales the tiles of a grey image to 8 bits, by the range of all of it."""
    ranges = [(values.min(), values.max()) for _, tile in _tiles(image) for values in [_values(tile)]]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    fitting = [white for white in _WHITE_LEVELS[image.mode] if low >= 0 and high <= white]
    black, white = (0.0, fitting[0]) if fitting else (low, high)
    scale = 255 / ((white - black) or 1.0)  # an image of one odd value becomes black
    return lambda tile: Image.fromarray(np.rint((_values(tile) - black) * scale).astype(np.uint8))


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)


def _name(source: str | os.PathLike[str] | bytes | Image.Image) -> str:
    if isinstance(source, Image.Image | bytes):
        return str(getattr(source, "filename", "") or "the given image")
    return os.fspath(source)


def _explain(error: Exception, source: str | os.PathLike[str] | bytes | Image.Image) -> str:
    """Say in one line what was found and what to do about it."""
    match error:
        case FileNotFoundError():
            return "there is no such file; check the path"
        case IsADirectoryError():
            return "it is a folder; give one image file"
        case _NotAFileError():
            return "it is no file but a pipe or a device; give one image file"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return (
                f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, perhaps a decompression bomb; "
                "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            )
        case UnidentifiedImageError() if _is_empty(source):
            return "the file is empty (0 bytes); copy it again from where it came, or remove it"
        case UnidentifiedImageError():
            return f"it is none of {', '.join(_FORMATS)}; convert it to PNG, or remove it"
        case _:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"it does not decode ({reason}); copy it again from where it came, or remove it"


def _is_empty(source: str | os.PathLike[str] | bytes | Image.Image) -> bool:
    if isinstance(source, str | os.PathLike):
        return os.path.getsize(source) == 0
    return source == b""
