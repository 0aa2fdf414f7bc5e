import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from ituning_hf.data.images import (
    FOLDER_LINK,
    UnreadableImageError,
    _registered_formats,
    allowed_unreadable,
    iter_images,
    load_image,
)

# 2 rows, 3 columns, no symmetry: every rotation and reflection changes it.
GREY = np.array([[0, 50, 100], [150, 200, 250]], dtype=np.uint8)

# The NumPy operation that undoes each EXIF orientation.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}


def red_channel(image: Image.Image) -> list[list[int]]:
    assert image.mode == "RGB"
    return np.asarray(image)[..., 0].tolist()


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_applies_every_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(GREY).save(path, exif=exif_with(orientation))
    assert red_channel(load_image(path)) == UPRIGHT[orientation](GREY).tolist()


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "F", "I"])
def test_rotates_tiffs_of_every_mode(tmp_path: Path, mode: str, compression: str | None) -> None:
    path = tmp_path / "turned.tif"
    Image.fromarray(GREY).convert(mode).save(path, exif=exif_with(6), compression=compression)
    assert red_channel(load_image(path)) == np.rot90(GREY, -1).tolist()


def test_reads_an_image_with_broken_exif(tmp_path: Path) -> None:
    path = tmp_path / "exif.png"
    Image.fromarray(GREY).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\0rubbish")
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(path) as image:
        ImageOps.exif_transpose(image)
    assert red_channel(load_image(path)) == GREY.tolist()


def test_composites_transparency_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(0, 0, 0, 0), (255, 0, 0, 51), (10, 20, 30, 255)]):
        rgba.putpixel((x, 0), pixel)
    rgba.save(tmp_path / "rgba.png")
    image = load_image(tmp_path / "rgba.png")
    # 51 / 255 = a fifth of red over four fifths of white
    assert [image.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (255, 204, 204), (10, 20, 30)]
    grey_alpha = Image.new("LA", (2, 1), (40, 255))
    grey_alpha.putpixel((1, 0), (40, 0))
    grey_alpha.save(tmp_path / "la.png")
    assert red_channel(load_image(tmp_path / "la.png")) == [[40, 255]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_composites_a_transparent_colour_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    image.save(tmp_path / "key.png", transparency=image.getpixel((0, 0)))
    expected = GREY.copy()
    expected[0, 0] = 255
    assert red_channel(load_image(tmp_path / "key.png")) == expected.tolist()


@pytest.mark.parametrize(
    ("alpha", "first"), [({}, (255, 0, 0)), ({"transparency": bytes([255, 51])}, (255, 204, 204))]
)
def test_reads_palettes(tmp_path: Path, alpha: dict, first: tuple[int, int, int]) -> None:
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 8, 7, 255, 0, 0])
    palette.putpixel((1, 0), 0)
    palette.save(tmp_path / "palette.png", **alpha)
    image = load_image(tmp_path / "palette.png")
    assert [image.getpixel((x, 0)) for x in range(2)] == [first, (9, 8, 7)]


def test_reads_one_bit_and_cmyk_images(tmp_path: Path) -> None:
    Image.fromarray(GREY > 120).save(tmp_path / "bits.png")
    assert red_channel(load_image(tmp_path / "bits.png")) == [[0, 0, 0], [255, 255, 255]]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red, green, blue = load_image(tmp_path / "cmyk.jpg").getpixel((8, 8))
    assert red >= 253
    assert max(green, blue) <= 2


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_scales_16_bits_by_their_range(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=dtype)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    Image.frombytes(mode, (4, 1), values.tobytes()).save(tmp_path / f"deep{suffix}")
    assert red_channel(load_image(tmp_path / f"deep{suffix}")) == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [0, 100, 255], [0, 100, 255]),
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.int32, [-100, 0, 155], [0, 100, 255]),
        (np.int32, [70000, 70000, 70000], [0, 0, 0]),
        (np.float32, [0, 0.2, 1], [0, 51, 255]),
        (np.float32, [0, 51, 255], [0, 51, 255]),
        (np.float32, [1000, 1200, 2000], [0, 51, 255]),
        (np.float32, [np.nan, np.inf, 1], [0, 0, 255]),
    ],
)
def test_scales_32_bit_integers_and_floats(
    tmp_path: Path, dtype: type, values: list[float], expected: list[int]
) -> None:
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "deep.tif")
    assert red_channel(load_image(tmp_path / "deep.tif")) == [expected]


@pytest.mark.parametrize("format", ["GIF", "MPO"])
def test_reads_the_first_frame(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "frames.jpg", format, save_all=True, append_images=frames[1:])
    red, _, blue = load_image(tmp_path / "frames.jpg").getpixel((8, 8))
    assert red > 250
    assert blue < 5


def test_reads_an_open_image_and_leaves_it_open_and_unchanged(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif_with(3))
    with Image.open(tmp_path / "a.png") as source:
        assert red_channel(load_image(source)) == GREY[::-1, ::-1].tolist()
        assert np.asarray(source).tolist() == GREY.tolist()
    source = Image.new("RGB", (2, 2), "red")
    load_image(source).putpixel((0, 0), (0, 0, 0))
    assert source.getpixel((0, 0)) == (255, 0, 0)


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\); copy it again, or remove it"),
        (b"<html>404</html>", r"it is not an image of a supported format .*; convert it to PNG, or .*"),
        (jpeg_bytes()[:2000], r"it cannot be decoded \(image file is truncated .*\); copy it again.*"),
        (jpeg_bytes()[:-2] + b"\xff\xda\0\2" * 500, r"it cannot be decoded \(it has more than 500 segm.*"),
        (b"\xff\xd8\xff\xd9" + b"\xff\xe1\0\2" * 501, r"it cannot be decoded \(it has more than 500 segm.*"),
        (
            b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 2**18,
            r".* more than 262144 bytes before its first frame.*",
        ),
        (b"P2 1 1 255 0", r"it cannot be decoded \(it is a PPM in text form\).*"),
    ],
    ids=["empty", "not an image", "truncated", "scans", "segments after the end", "comment", "text"],
)
def test_bad_files_and_bytes_are_explained(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"^cannot read {re.escape(str(path))}: {reason}$"):
        load_image(path)
    with pytest.raises(UnreadableImageError, match=f"^cannot read row 7: {reason}$"):
        load_image(content, name="row 7")
    with pytest.raises(UnreadableImageError, match=r"^cannot read the given image: "):
        load_image(content)


@pytest.mark.parametrize(
    ("name", "reason"),
    [(".", "it is a folder; give one image file"), ("none.jpg", "there is no such file; check the path")],
)
def test_bad_paths_are_explained(tmp_path: Path, name: str, reason: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=f"^cannot read {re.escape(path)}: {reason}$"):
        load_image(path)


@pytest.mark.parametrize("size", [(11, 10), (30, 10)], ids=["Pillow warns", "Pillow raises"])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], action: str
) -> None:
    Image.new("L", size).save(tmp_path / "bomb.png")
    Image.new("L", (10, 10)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_image(tmp_path / "large.png").size == (10, 10)
    warnings.simplefilter(action)
    with pytest.raises(UnreadableImageError, match=r"it has more than 100 pixels.*; shrink it, or raise PIL"):
        load_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / "bomb.png").size == size


OTHER_SUFFIXES = (
    "avif",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "jpe",
    "jfif",
    "mpo",
    "heic",
    "heif",
    "tif",
    "bmp",
    "apng",
)


def test_finds_images_recursively_and_sorted(tmp_path: Path) -> None:
    names = ["b/z.PNG", "a.jpg", "b/c/d.webp", ".hidden/e.jpeg", "b/._z.jpg", "notes.txt", "photo"]
    names += [f"formats/{suffix}.{suffix}" for suffix in OTHER_SUFFIXES]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken link.jpg").symlink_to(tmp_path / "gone.jpg")
    expected = ["a.jpg", "b/c/d.webp", "b/z.PNG", "broken link.jpg"]
    expected += [f"formats/{suffix}.{suffix}" for suffix in sorted(OTHER_SUFFIXES)]
    (tmp_path / "linked").symlink_to(tmp_path / "b", target_is_directory=True)
    left_out: dict[str, int] = {}
    assert [*iter_images(tmp_path, left_out)] == [str(tmp_path / name) for name in expected]
    assert left_out == {".txt": 1, "": 1, FOLDER_LINK: 1}
    assert sorted(iter_images(tmp_path, in_order=False)) == sorted(iter_images(tmp_path))
    assert {*iter_images(tmp_path, in_order=False, below=False)} == {*map(str, tmp_path.glob("[ab]*.*"))}
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        next(iter_images(tmp_path / "nowhere"))


def test_the_limit_of_unreadable_images_by_hand() -> None:
    cases = {(0.29, 100): 29, (0.1, 11): 1, (0.2, 4): 0, (0.0, 5): 0, (1.0, 3): 2}
    assert {case: allowed_unreadable(*case) for case in cases} == cases


def test_the_plug_in_for_heif_is_registered_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    plugin = SimpleNamespace(register_heif_opener=lambda: registered.append("HEIF"))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    _registered_formats.cache_clear()
    with pytest.raises(UnreadableImageError, match="not an image of a supported format"):
        load_image(b"nonsense")
    assert registered == ["HEIF"]
    _registered_formats.cache_clear()
