"""Untrusted images: each is read or refused with a reason, quickly and in little memory."""

import os
import re
import sys
from pathlib import Path

import hostile_corpus as corpus
import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from ituning_hf.captioner.images_ituning import prepare_images
from ituning_hf.data.images import UnreadableImageError, load_image
from ituning_hf.utils.terminal import printable

MEMORY = 200 << 20  # bytes for the whole corpus; one resized strip or one bomb would exceed it
ORIENTED = [name for name in corpus.odd_files() if name.startswith("turned")]
MUTATIONS = 500  # of each valid file, under `-m stress`


def test_every_valid_file_is_read_to_its_size(tmp_path: Path) -> None:
    for path in corpus.write(tmp_path, corpus.valid_files() | corpus.odd_files() | corpus.named_files()):
        with Image.open(path) as opened:
            size = opened.size[::-1] if path.name in ORIENTED[4:] else opened.size
        image = load_image(path)
        assert (image.mode, image.size) == ("RGB", size)


def test_inverted_cmyk_looks_like_the_photograph(tmp_path: Path) -> None:
    for path in corpus.write(tmp_path, corpus.valid_files()):
        if path.name.startswith("cmyk"):
            difference = np.asarray(load_image(path), dtype=int) - np.asarray(corpus.picture(), dtype=int)
            assert np.abs(difference).mean() < 8, path.name


def bad_paths(folder: Path) -> list[Path]:
    """Broken files, a folder, a pipe, a device, a broken link, and an empty file of 20 GiB."""
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    with (folder / "hole.jpg").open("wb") as file:
        file.truncate(20 << 30)
    broken = corpus.write(folder, corpus.broken_files())
    return [*broken, *corpus.not_files(folder), folder / "nowhere.jpg", folder / "hole.jpg"]


def test_every_broken_file_is_named_with_its_reason(tmp_path: Path) -> None:
    for path in bad_paths(tmp_path):
        reason = "it is a pipe or a device" if path.name in ("pipe.jpg", "endless.jpg") else ""
        with pytest.raises(UnreadableImageError) as caught:
            load_image(path)
        assert str(caught.value).startswith(f"cannot read {path}: {reason}")
        assert "\n" not in str(caught.value)


def test_file_names_cannot_send_terminal_commands(tmp_path: Path) -> None:
    for name in [*corpus.NAMES[:3], corpus.NOT_UTF8]:
        with pytest.raises(UnreadableImageError) as caught:
            load_image(tmp_path / name)
        assert str(caught.value).isprintable()
        assert printable(name) in str(caught.value)


@pytest.mark.parametrize("name", ["x.eps", "x.jpg"])
def test_no_file_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pillow passes PostScript to Ghostscript, whatever the file's name is."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/mark'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (path,) = corpus.write(tmp_path, {name: corpus.broken_files()["postscript.jpg"]})
    with pytest.raises(UnreadableImageError, match="it is not an image of a supported format"):
        load_image(path)
    assert not (tmp_path / "mark").exists()


def peak_memory() -> int:
    """The most bytes that this process had resident since the last reset."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak memory of a process")
def test_the_whole_corpus_takes_little_memory(tmp_path: Path) -> None:
    valid = corpus.write(tmp_path, corpus.valid_files() | corpus.odd_files())
    broken = bad_paths(tmp_path)
    processor = CLIPImageProcessorPil()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    for path in valid:
        pixels = prepare_images(processor, [load_image(path)], return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 224, 224)
    for path in broken:
        with pytest.raises(UnreadableImageError):
            load_image(path)
    assert peak_memory() - before < MEMORY


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak memory of a process")
@pytest.mark.parametrize("mode", ["RGBA", "F"])
def test_the_largest_image_takes_nine_bytes_per_pixel(tmp_path: Path, mode: str) -> None:
    """Four in the file, three in the result, and some for the tiles."""
    Image.new(mode, (9_400, 9_400)).save(tmp_path / "large.tif", compression="tiff_lzw")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    assert load_image(tmp_path / "large.tif").size == (9_400, 9_400)
    assert peak_memory() - before < 9 * 9_400**2


def mangled(content: bytes, rng: np.random.Generator) -> bytes:
    """Truncate a file or change some of its bytes, half of them near its beginning."""
    if rng.random() < 0.4:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        reach = 200 if rng.random() < 0.5 else len(content)
        changed[rng.integers(min(reach, len(content)))] = rng.integers(256)
    return bytes(changed)


@pytest.mark.parametrize("times", [3, pytest.param(MUTATIONS, marks=pytest.mark.stress)])
def test_corrupted_images_decode_or_are_refused(times: int) -> None:
    rng = np.random.default_rng(17)
    for content in corpus.valid_files().values():
        for _ in range(times):
            try:
                assert load_image(mangled(content, rng)).mode == "RGB"
            except UnreadableImageError:
                continue
