"""`CaptionBatch` on the batches of Ray Data, `datasets` and pandas, compared with `iter_captions`."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from datasets.fingerprint import Hasher
from PIL import Image

import ituning_hf
from ituning_hf import CaptionBatch
from ituning_hf.utils.errors import UserError

SHORT = {"num_beams": 3, "max_new_tokens": 9, "batch_size": 4}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photographs of different sizes, of which one is turned by its EXIF data; and one without a file."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    for i in range(3):
        pixels = rng.random((31 + 5 * i, 47, 3)) * [255, 200 - 60 * i, 90 * i]
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png", exif=exif)
    return [str(folder / name) for name in ("0.png", "1.png", "missing.jpg", "2.png")]


@pytest.fixture(scope="module")
def expected(saved_captioner: Path, paths: list[str]) -> list[str]:
    captions = ituning_hf.caption(saved_captioner, [path for path in paths if "missing" not in path], **SHORT)
    assert len(set(captions)) == 3
    captions.insert(2, "")
    return captions


def upright(path: str) -> Image.Image:
    return ituning_hf.data.load_image(path)


def content(path: str) -> bytes | None:
    return Path(path).read_bytes() if Path(path).exists() else None


def in_memory(path: str, make: Any) -> Any:
    return make(upright(path)) if Path(path).exists() else None


CELLS = {
    "paths": str,
    "path objects": Path,
    "bytes": content,
    "buffers": lambda path: content(path) and bytearray(content(path) or b""),
    "dicts of bytes": lambda path: {"bytes": content(path), "path": None},
    "dicts of paths": lambda path: {"bytes": None, "path": path},
    "images": lambda path: in_memory(path, lambda image: image),
    "arrays": lambda path: in_memory(path, np.asarray),
}


@pytest.mark.parametrize("kind", CELLS)
def test_cells(saved_captioner: Path, paths: list[str], expected: list[str], kind: str):
    found = CaptionBatch(saved_captioner, **SHORT)(
        {"image": [CELLS[kind](path) for path in paths], "n": [1, 2, 3, 4]}
    )
    assert found["caption"] == expected
    assert [bool(error) for error in found["caption_error"]] == [False, False, True, False]
    assert found["n"] == [1, 2, 3, 4]


def test_arrays_of_one_shape(saved_captioner: Path):
    """Ray Data stacks images of one shape; grey ones may lack the axis of channels, or have one channel."""
    grey = np.arange(4 * 37 * 41).reshape(4, 37, 41).astype(np.uint8) * [[[1]], [[3]], [[5]], [[7]]]
    grey = grey.astype(np.uint8)
    images = [Image.fromarray(image) for image in grey]
    expected = ituning_hf.caption(saved_captioner, images, **SHORT)
    for arrays in (grey, grey[..., None], np.stack([grey] * 3, axis=-1)):
        assert CaptionBatch(saved_captioner, **SHORT)({"image": arrays})["caption"].tolist() == expected


def test_cells_without_an_image_have_a_reason(saved_captioner: Path):
    cells = [None, float("nan"), 7, b"", b"x", {}, np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)]
    found = CaptionBatch(saved_captioner, **SHORT)({"image": cells})
    assert found["caption"] == [""] * len(cells)
    none, nan, number, empty, broken, no_keys, floats, no_pixels = found["caption_error"]
    assert (none, nan, number) == ("None is not an image", "nan is not an image", "7 is not an image")
    assert "the file is empty" in empty
    assert "not an image of a supported format" in broken
    assert no_keys == "None is not an image"
    assert floats.startswith("an array of float64 and shape (5, 5, 3) is not an image (")
    assert no_pixels


def test_a_dict_of_arrays(saved_captioner: Path, paths: list[str], expected: list[str]):
    batch = {"path": np.array(paths, dtype=object), "n": np.arange(4)}
    columns = {"image_column": "path", "caption_column": "text", "error_column": "error"}
    found = CaptionBatch(saved_captioner, **columns, **SHORT)(batch)
    assert list(found) == ["path", "n", "text", "error"]
    assert list(batch) == ["path", "n"]
    assert all(isinstance(column, np.ndarray) for column in found.values())
    assert found["text"].tolist() == expected


def test_a_frame(saved_captioner: Path, paths: list[str], expected: list[str]):
    frame = pandas.DataFrame({"image": paths, "n": range(4)}, index=[8, 8, 3, 1])
    found = CaptionBatch(saved_captioner, **SHORT)(frame)
    assert list(frame) == ["image", "n"]
    assert list(found) == ["image", "n", "caption", "caption_error"]
    assert (found["caption"].tolist(), found.index.tolist()) == (expected, [8, 8, 3, 1])


@pytest.mark.parametrize("decode", [True, False])
def test_a_dataset_keeps_its_images(
    saved_captioner: Path, paths: list[str], expected: list[str], decode: bool
):
    readable, captions = [*paths[:2], paths[3]], [text for text in expected if text]
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": content(path), "path": None} for path in readable]}
    )
    dataset = rows.cast_column("image", datasets.Image(decode=decode))
    found = dataset.map(CaptionBatch(saved_captioner, **SHORT), batched=True)
    assert found["caption"][:] == captions
    images = found.cast_column("image", datasets.Image(decode=False))["image"]
    assert [image["bytes"] for image in images] == [content(path) for path in readable]


def test_it_is_pickled_without_the_captioner(saved_captioner: Path, paths: list[str], expected: list[str]):
    captioner = CaptionBatch(saved_captioner, load_options={"dtype": "float32"}, **SHORT)
    before, fingerprint = pickle.dumps(captioner), Hasher.hash(captioner)
    captioner({"image": paths})
    assert (pickle.dumps(captioner), Hasher.hash(captioner)) == (before, fingerprint)
    assert pickle.loads(before)({"image": paths})["caption"] == expected


def test_wrong_arguments(saved_captioner: Path, paths: list[str]):
    with pytest.raises(UserError, match="there is no column 'image', only 'path', 'n'"):
        CaptionBatch(saved_captioner)({"path": paths, "n": [1, 2, 3, 4]})
    with pytest.raises(UserError, match="already has a column 'caption', which is not replaced"):
        CaptionBatch(saved_captioner)({"image": paths, "caption": ["a"] * 4})
    with pytest.raises(TypeError, match="one caption for each image"):
        CaptionBatch(saved_captioner, num_captions=2)
    with pytest.raises(OSError, match="no captioner at 'nowhere/at/all'"):
        CaptionBatch("nowhere/at/all")({"image": paths})
