"""Image files from strangers: valid, odd, broken, enormous, and files that are not images."""

import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

# Names with terminal escape codes, a line break, a change of direction, joiners, and the maximum length.
NAMES = [
    "\x1b[2J\x1b]0;owned\x07.png",
    "line\nbreak\r.png",
    "\u202egnp.png",
    "👩‍👩‍👧 family.png",
    "n" * 251 + ".png",
]
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
ORIENTATION_TAG = 0x112


def picture(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """Make a picture that is smooth enough for JPEG, another one for each seed."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + seed % 7) + seed + c) + np.cos(y / (4 + seed % 5) + c) for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 60 + 127).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """Make a grey PNG whose header has any size, with chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Compress zeros to a thousandth of their bytes; the checksum at the end is wrong."""
    packer = zlib.compressobj(9)
    first, following = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + following * ((count >> 20) - 1) + packer.flush()


@cache
def valid_files() -> dict[str, bytes]:
    """Return a small file of each image format and its variants."""
    photo, moving = picture(), [picture(seed=seed) for seed in (1, 2)]
    rgba = photo.convert("RGBA")
    rgba.paste((9, 9, 9, 0), (0, 0, 10, 10))
    frames = {"save_all": True, "append_images": moving}
    grey = np.asarray(photo.convert("L"))
    return {
        "photo.jpg": encoded(photo, "JPEG"),
        "progressive.jpg": encoded(photo, "JPEG", progressive=True),
        "photo.png": encoded(photo, "PNG"),
        "photo.webp": encoded(photo, "WEBP"),
        "lossless.webp": encoded(rgba, "WEBP", lossless=True),
        "photo.gif": encoded(photo, "GIF"),
        "photo.tif": encoded(photo, "TIFF"),
        "lzw.tif": encoded(photo, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(photo, "TIFF", compression="jpeg"),
        "photo.bmp": encoded(photo, "BMP"),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(photo.convert("CMYK"), "TIFF"),
        "16 bits.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "floats.tif": encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "palette with alpha.png": encoded(rgba.quantize(16), "PNG", transparency=bytes(range(0, 240, 15))),
        "bits.png": encoded(photo.convert("1"), "PNG"),
        "grey with alpha.png": encoded(rgba.convert("LA"), "PNG"),
        "moving.gif": encoded(photo, "GIF", **frames),
        "moving.webp": encoded(photo, "WEBP", **frames),
        "moving.png": encoded(photo, "PNG", **frames),
        "moving.tif": encoded(photo, "TIFF", **frames),
    }


@cache
def odd_files() -> dict[str, bytes]:
    """Return files that can be read and have unusual properties."""
    exif = Image.Exif()
    exif[0x10E] = "x" * 60_000  # almost the maximum, and Pillow 12 writes all metadata as one block of 64 KiB
    texts = PngImagePlugin.PngInfo()
    for number in range(40):
        texts.add_text(f"note {number}", "long " * 20_000)
    turned = {}
    for orientation in range(1, 9):
        turn = Image.Exif()
        turn[ORIENTATION_TAG] = orientation
        turned[f"turned {orientation}.jpg"] = encoded(picture(seed=orientation), "JPEG", exif=turn)
    return {
        "a png.jpg": encoded(picture(), "PNG"),
        "a jpeg.png": encoded(picture(), "JPEG"),
        "1x1.png": encoded(picture(1, 1), "PNG"),
        "30000x1.png": encoded(picture(30_000, 1), "PNG"),
        "1x30000.png": encoded(picture(1, 30_000), "PNG"),
        "much exif.jpg": encoded(picture(), "JPEG", exif=exif, comment=b"c" * 5_000),
        "much profile.jpg": encoded(picture(), "JPEG", icc_profile=bytes(3 << 20)),
        "many notes.png": encoded(picture(), "PNG", pnginfo=texts),
        **turned,
    }


@cache
def broken_files() -> dict[str, bytes]:
    """Return files that cannot be read: truncated, of other formats, or much larger when decoded."""
    cut = {
        f"cut at {share:.0%} {name}": content[: int(len(content) * share)]
        for name, content in valid_files().items()
        if name.startswith("photo.") and not name.endswith(".gif")
        for share in (0.02, 0.3, 0.6, 0.9)
        if (name, share) != ("photo.png", 0.9)  # has all pixels
    }
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
    bomb = b"k\0\0" + zeros(1 << 30)
    pixels = zlib.compress(bytes(72))
    return {
        **cut,
        "cut.gif": valid_files()["photo.gif"][:500],
        "empty.jpg": b"",
        "zeros.jpg": bytes(5000),
        "svg.jpg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "text.jpg": b"A dog runs on the grass.\n",
        "page.jpg": b"<!doctype html><html><title>404 Not Found</title></html>",
        "archive.jpg": b"PK\x03\x04" + bytes(100),
        "postscript.jpg": postscript,
        "bomb.png": png(100_000, 100_000, rows=zeros(1 << 24)),
        "bomb just over.png": png(9_500, 9_500, rows=zeros(1 << 24)),
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 99_999, 99_999, 1, 24) + bytes(24),
        "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + bytes(50),
        "frame bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b","
        + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0) + b"\x02\x02\x4c\x01\x00;",
        "text bomb.png": png(8, 8, chunk(b"zTXt", bomb), rows=pixels),
        "profile bomb.png": png(8, 8, chunk(b"iCCP", bomb), rows=pixels),
        "no pixels.png": png(0, 5),
        "no rows.png": png(8, 8, rows=zlib.compress(b"")),
    }  # fmt: skip


def not_files(folder: Path) -> Iterator[Path]:
    """Make a folder, a pipe and a device with the names of images (on Windows only the folder)."""
    (folder / "folder.jpg").mkdir()
    yield folder / "folder.jpg"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        (folder / "endless.jpg").symlink_to("/dev/zero")
        yield from (folder / "pipe.jpg", folder / "endless.jpg")


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def named_files() -> dict[str, bytes]:
    """Return files that can be read and have unusual names."""
    names = NAMES + [NOT_UTF8] * (sys.platform == "linux")  # other systems refuse the name
    return {name: encoded(picture(seed=9 + place), "PNG") for place, name in enumerate(names)}
