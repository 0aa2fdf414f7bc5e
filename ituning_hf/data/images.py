"""Reading photographs as people have them: rotated, transparent, 16-bit, broken."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

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


class UnreadableImageError(ValueError):
    """An image that cannot be read; the one-line text says which, why, and what to do."""


def load_image(source: str | os.PathLike[str] | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Decode an image into upright 8-bit RGB.

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
        UnreadableImageError: The file is missing, a folder, empty, no image, cut short, or has
            more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(_upright(source))
        # By file and not by name: of a file whose name it knows, Pillow 13 maps uncompressed data
        # into memory, and scrambles TIFFs that are stored on their side.
        with _open(source) as file, Image.open(file) as image:
            _refuse_bomb(image)
            return _to_rgb(_upright(image))
    # Decoders raise whatever their parser trips over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(
            f"cannot read {name or _name(source)}: {_explain(error, source)}"
        ) from error


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files below a folder, recursively, sorted by path.

    Files are told by `IMAGE_SUFFIXES`, in any case. Hidden files and folders are left out: they
    hold thumbnails, checkpoints and the "._" twins that macOS writes, not photographs.

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
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _open(source: str | os.PathLike[str] | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _refuse_bomb(image: Image.Image) -> None:
    # Pillow only warns between one and two times its limit. Turning that warning into an error
    # would change the filters of every thread, so its check is repeated here as an error.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # outside the `try`: a file cut short is no fault of its EXIF block
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()  # a broken EXIF block says nothing about the orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WHITE_LEVELS:
        image = _grey_to_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    fitting = [white for white in _WHITE_LEVELS[image.mode] if low >= 0 and high <= white]
    black, white = (0.0, fitting[0]) if fitting else (low, high)
    scale = 255 / ((white - black) or 1.0)  # an image of one odd value becomes black
    return Image.fromarray(np.rint((values - black) * scale).astype(np.uint8))


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
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return (
                f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, perhaps a decompression bomb; "
                "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            )
        case UnidentifiedImageError() if _is_empty(source):
            return "the file is empty (0 bytes); copy it again from where it came, or remove it"
        case UnidentifiedImageError():
            return "it is of no image format that Pillow knows; convert it to PNG, or remove it"
        case _:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"it does not decode ({reason}); copy it again from where it came, or remove it"


def _is_empty(source: str | os.PathLike[str] | bytes | Image.Image) -> bool:
    if isinstance(source, str | os.PathLike):
        return os.path.getsize(source) == 0
    return source == b""
