"""Pictures of strangers, decoded and prepared: read or named, quickly and in little memory."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hostile_corpus as corpus
import numpy as np
import pytest
from PIL import Image
from small_models import SHARED_DATA
from transformers import CLIPImageProcessorPil

from ituning_hf.captioner.processing_ituning import cut_strips, prepare_images
from ituning_hf.data.images import UnreadableImageError, find_images, load_image
from ituning_hf.utils.terminal import printable

SECONDS = 20  # of work for any one file: a small one may hold as many pixels as Pillow allows
MUTATIONS = 500  # of each valid file, in the stress form
PHOTOGRAPHS = 40  # that it mangles too
MEMORY = 200 << 20  # that all the corpus may take, and no strip or bomb would keep to
ORIENTED = [name for name in corpus.odd_files() if name.startswith("turned")]


class Hangs(BaseException):  # no Exception, which a reader would take for a broken file
    pass


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """End a test that waits for ever: no file of the corpus takes long."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_every_valid_file_is_read_to_its_size(tmp_path: Path) -> None:
    paths = corpus.write(tmp_path, corpus.valid_files() | corpus.odd_files() | corpus.named_files())
    for path in paths:
        with Image.open(path) as opened:
            size = opened.size[::-1] if path.name in ORIENTED[4:] else opened.size
        image = load_image(path)
        assert (image.mode, image.size) == ("RGB", size)


def test_reads_the_first_picture_of_a_phones_mpo(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "phone.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    red, _, blue = load_image(tmp_path / "phone.jpg").getpixel((8, 8))
    assert red > 250
    assert blue < 5


def test_the_orientations_of_a_jpeg_are_undone(tmp_path: Path) -> None:
    for number, path in enumerate(corpus.write(tmp_path, corpus.odd_files()), start=1):
        if path.name in ORIENTED:
            with Image.open(path) as stored:
                upright = stored.convert("RGB")
            turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180]
            turns += [Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270]
            turn = [*turns, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90][ORIENTED.index(path.name)]
            expected = upright if turn is None else upright.transpose(turn)
            assert load_image(path).tobytes() == expected.tobytes(), number


def test_inverted_cmyk_looks_like_the_photograph(tmp_path: Path) -> None:
    for path in corpus.write(tmp_path, corpus.valid_files()):
        if path.name.startswith("cmyk"):
            apart = np.abs(np.asarray(load_image(path), dtype=int) - np.asarray(corpus.picture(), dtype=int))
            assert apart.mean() < 8, path.name


def test_every_broken_file_is_named_with_its_reason(tmp_path: Path) -> None:
    paths = [*corpus.write(tmp_path, corpus.broken_files()), *corpus.not_files(tmp_path)]
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    for path in [*paths, tmp_path / "nowhere.jpg"]:
        start = time.process_time()
        with pytest.raises(UnreadableImageError) as caught:
            load_image(path)
        assert str(caught.value).startswith(f"cannot read {path}: ")
        assert "\n" not in str(caught.value)
        assert time.process_time() - start < SECONDS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes or devices on this system")
def test_a_pipe_and_a_device_are_told_and_not_read(tmp_path: Path) -> None:
    for path in [*corpus.not_files(tmp_path)][1:]:
        with pytest.raises(UnreadableImageError, match="it is no file but a pipe or a device; give one"):
            load_image(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (path,) = corpus.write(tmp_path, {"secret.png": corpus.valid_files()["photo.png"]})
    path.chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        load_image(path)


def test_a_folder_lists_all_that_looks_like_a_picture_and_no_folder(tmp_path: Path) -> None:
    (photo,) = corpus.write(tmp_path, {"photo.png": b""})
    _, *others = corpus.not_files(tmp_path)
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    assert find_images(tmp_path) == sorted([photo, *others, tmp_path / "nowhere.jpg"])


def test_names_command_no_terminal(tmp_path: Path) -> None:
    for name in [*corpus.NAMES[:3], corpus.NOT_UTF8]:
        with pytest.raises(UnreadableImageError) as caught:
            load_image(tmp_path / name)
        assert str(caught.value).isprintable()
        assert printable(name) in str(caught.value)


@pytest.mark.parametrize("name", ["x.eps", "x.jpg"])
def test_no_file_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file's name is."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/mark'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (path,) = corpus.write(tmp_path, {name: corpus.broken_files()["postscript.jpg"]})
    with pytest.raises(UnreadableImageError, match="it is none of JPEG, PNG"):
        load_image(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("size", [(400, 3), (1001, 13), (7, 1000), (33, 1), (1, 34), (5011, 107)])
def test_a_strip_gives_the_pixels_that_it_gives_whole(size: tuple[int, int]) -> None:
    """To rounding: where its length in pixels is no whole number, CLIP's resizing cuts that off."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    prepare = CLIPImageProcessorPil(do_normalize=False, do_rescale=False)
    whole, cut = (prepare(i, return_tensors="np")["pixel_values"] for i in (image, cut_strips(image)))
    assert max(cut_strips(image).size) <= 32 * min(size) < max(size)
    assert np.abs(whole.astype(int) - cut.astype(int)).max() <= 3
    assert (whole != cut).mean() < 0.3


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 24, "width": 24}, "do_center_crop": False},
        {"size": {"height": 24, "width": 24}},
        {"do_resize": False},
    ],
)
def test_nothing_is_cut_where_the_middle_is_not_what_is_kept(settings: dict) -> None:
    strip = Image.fromarray(
        np.tile(np.linspace(0, 255, 4000, dtype=np.uint8)[:, None], (20, 1, 1, 3))[:, :, 0]
    )
    plain = CLIPImageProcessorPil()
    own = CLIPImageProcessorPil(**settings)
    expected = own(images=[strip], return_tensors="np")["pixel_values"]
    for preparation, options in ((own, {}), (plain, settings)):
        found = prepare_images(preparation, [strip], return_tensors="np", **options)["pixel_values"]
        assert np.array_equal(found, expected)


def test_only_strips_are_cut() -> None:
    images = [Image.new("RGB", (32, 1)), Image.new("RGB", (3, 96)), np.zeros((1, 400, 3), np.uint8)]
    assert all(a is b for a, b in zip(cut_strips(images), images, strict=True))


def peak_memory() -> int:
    """The most bytes that this process had resident since it last forgot about it."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets how much memory a process has had")
def test_all_the_corpus_takes_little_memory(tmp_path: Path) -> None:
    valid = corpus.write(tmp_path, corpus.valid_files() | corpus.odd_files())
    broken = [
        *corpus.write(tmp_path, corpus.broken_files()),
        *corpus.not_files(tmp_path),
        tmp_path / "hole.jpg",
    ]
    with broken[-1].open("wb") as file:
        file.truncate(20 << 30)
    prepare = CLIPImageProcessorPil()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    for path in valid:
        pixels = prepare(cut_strips(load_image(path)), return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 224, 224)
    for path in broken:
        with pytest.raises(UnreadableImageError):
            load_image(path)
    assert peak_memory() - before < MEMORY


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets how much memory a process has had")
@pytest.mark.parametrize("mode", ["RGBA", "F"])
def test_the_largest_picture_takes_little_more_than_itself(tmp_path: Path, mode: str) -> None:
    """Nine bytes a pixel at most: four as in the file, three as it comes out, and some for the tiles."""
    Image.new(mode, (9_400, 9_400)).save(tmp_path / "large.tif", compression="tiff_lzw")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    assert load_image(tmp_path / "large.tif").size == (9_400, 9_400)
    assert peak_memory() - before < 9 * 9_400**2


def mangled(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file, or change some of its bytes, of which those at its beginning say the most."""
    if rng.random() < 0.4:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        reach = 200 if rng.random() < 0.5 else len(content)
        changed[rng.integers(min(reach, len(content)))] = rng.integers(256)
    return bytes(changed)


def read_mangled(contents: list[bytes], times: int) -> None:
    rng = np.random.default_rng(17)
    for content in contents:
        for _ in range(times):
            start = time.process_time()
            with contextlib.suppress(UnreadableImageError):
                assert load_image(mangled(content, rng)).mode == "RGB"
            assert time.process_time() - start < SECONDS


def test_mangled_pictures_decode_or_are_named() -> None:
    read_mangled([*corpus.valid_files().values()], 6)


@pytest.mark.stress
def test_many_mangled_pictures_decode_or_are_named() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = [*corpus.valid_files().values()]
    read_mangled(files, MUTATIONS)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 2 * MEMORY


@pytest.mark.stress
def test_mangled_photographs_decode_or_are_named() -> None:
    folder = SHARED_DATA / "flickr8k-mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    contents = [path.read_bytes() for path in find_images(folder)[:PHOTOGRAPHS]]
    read_mangled(contents, MUTATIONS // 10)
