"""Reading real-world photographs: rotated, transparent, 16-bit or damaged."""

from __future__ import annotations

import functools
import io
import math
import os
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import suppress

from PIL import Image, UnidentifiedImageError

from ..captioner.images_ituning import to_rgb, upright
from ..utils.terminal import printable
from .slow_images import reject_slow_image

# The formats of photographs. Pillow reads many more, but it starts Ghostscript for EPS, and the other
# decoders are less tested. HEIF requires the package pillow-heif.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM")

IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if name in (*_FORMATS, "MPO")  # a JPEG with several images
) | {".heic", ".heif", ".hif"}

FOLDER_LINK = "(link to a folder)"

_Source = str | os.PathLike[str] | bytes | Image.Image


class UnreadableImageError(ValueError):
    """An image cannot be read. The one-line message has its name, the reason and what to do."""


class TooManyPixelsError(UnreadableImageError):
    """An image has more pixels than are decoded."""


def allowed_unreadable(share: float, num_images: int) -> int:
    """Return how many images of a split `--max_unreadable_share` lets be unreadable: never all of them."""
    allowed = math.floor(round(share * num_images, 6))  # 0.29 of 100 is 28.999999999999996
    return min(allowed, num_images - 1)


def load_image(source: _Source, name: str | None = None, max_pixels: int | None = None) -> Image.Image:
    """Decode an image into upright 8-bit RGB.

    The format is detected from the content, not from the file name: AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF or
    WebP, and HEIF if pillow-heif is installed. Safe to call from several threads.

    The EXIF orientation is applied. Transparent pixels are composited over white. The first frame of an
    animation is used. Grey values of more than 8 bits are scaled, not clipped: white is 65535 for 16 bits,
    255 or 65535 (the smallest that no value exceeds) for 32-bit integers, and 1 or 255 for floats. Other
    ranges are scaled from minimum to maximum.

    Args:
        source: The path or the bytes of a file, or an open image (which stays open).
        name: The image's name in messages; by default its path.
        max_pixels: The most pixels of a file, by default `PIL.Image.MAX_IMAGE_PIXELS`; checked before the
            file is decoded.

    Returns:
        A new, fully decoded image of mode "RGB", of the size that the source has after rotation.

    Raises:
        TooManyPixelsError: The file has more than `max_pixels` pixels.
        UnreadableImageError: The file is missing, empty, truncated, not an image, a folder, a pipe or a
            device.
    """
    try:
        if isinstance(source, Image.Image):
            return to_rgb(upright(source))
        # Opened as a stream, not by name: with a name, Pillow 13 memory-maps uncompressed data and corrupts
        # rotated TIFFs.
        opened = io.BytesIO(source) if isinstance(source, bytes) else open_file(source)
        with opened as file:
            reject_slow_image(file)
            with Image.open(file, formats=_registered_formats()) as image:
                # Between one and two times its own limit, Pillow only warns.
                if image.width * image.height > (max_pixels or Image.MAX_IMAGE_PIXELS or math.inf):
                    raise Image.DecompressionBombError
                return to_rgb(upright(image))
    # Decoders raise OSError, SyntaxError, struct.error and others on malformed input.
    except Exception as error:
        problem = f"cannot read {name or _name(source)}: {_explain(error, source, max_pixels)}"
        is_bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        raise (TooManyPixelsError if is_bomb else UnreadableImageError)(printable(problem)) from error


def iter_images(
    folder: str | os.PathLike[str],
    left_out: MutableMapping[str, int] | None = None,
    *,
    in_order: bool = True,
    below: bool = True,
) -> Iterator[str]:
    """Yield the paths of the image files in and below a folder, sorted part by part.

    A file is an image if its name ends in one of `IMAGE_SUFFIXES`, in upper or lower case. Broken links,
    pipes and devices with such names are included, so they are reported when they are read. Hidden files and
    folders are skipped: they contain thumbnails, checkpoints and the "._" files of macOS. Links to folders
    are not followed.

    Args:
        folder: The folder.
        left_out: Receives the number of the other files by suffix, and of links to folders as `FOLDER_LINK`.
        in_order: Whether to sort them. Otherwise, no more of a folder is listed than the caller takes.
        below: Whether to include the folders in it.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{os.fspath(folder)} is not a folder")
    with os.scandir(folder) as entries:
        found = (
            (entry.name, entry.is_dir(follow_symlinks=False), entry.is_dir())
            for entry in entries
            if not entry.name.startswith(".")
        )
        for name, is_folder, leads_to_folder in sorted(found) if in_order else found:
            path = os.path.join(folder, name)
            suffix = FOLDER_LINK if leads_to_folder else os.path.splitext(name)[1].lower()
            if is_folder:
                yield from iter_images(path, left_out, in_order=in_order) if below else ()
            elif suffix in IMAGE_SUFFIXES:
                yield path
            elif left_out is not None:
                suffix = suffix if suffix == FOLDER_LINK or suffix[1:].isalnum() else ""  # of "Mr. Smith"
                left_out[suffix] = left_out.get(suffix, 0) + 1


class _NotAFileError(OSError):
    """A pipe, from which reading may block, or a device, from which reading may never end."""


def open_file(source: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file to read its bytes.

    Raises:
        OSError: The path is a folder, a pipe or a device, or cannot be opened.
    """
    mode = os.stat(source).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _NotAFileError
    return open(source, "rb")


@functools.cache
def _registered_formats() -> list[str]:
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [name for name in _FORMATS if name in Image.OPEN]


def _name(source: _Source) -> str:
    if isinstance(source, Image.Image | bytes):
        return str(getattr(source, "filename", "") or "the given image")
    return os.fspath(source)


def _explain(error: Exception, source: _Source, max_pixels: int | None) -> str:
    """Return a one-line description of the problem and what to do."""
    match error:
        case FileNotFoundError():
            return "there is no such file; check the path"
        case IsADirectoryError():
            return "it is a folder; give one image file"
        case _NotAFileError():
            return "it is a pipe or a device; give one image file"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning() if max_pixels:
            return f"it has more than {max_pixels} pixels; shrink it"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return (
                f"it has more than {Image.MAX_IMAGE_PIXELS} pixels, perhaps a decompression bomb; "
                "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            )
        case UnidentifiedImageError() if _is_empty(source):
            return "the file is empty (0 bytes); copy it again, or remove it"
        case UnidentifiedImageError():
            return (
                f"it is not an image of a supported format ({', '.join(_FORMATS)}); convert it to PNG, or "
                "remove it"
            )
        case _:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"it cannot be decoded ({reason}); copy it again, or remove it"


def _is_empty(source: _Source) -> bool:
    if isinstance(source, str | os.PathLike):
        return os.path.getsize(source) == 0
    return source == b""
