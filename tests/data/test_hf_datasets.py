import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ituning_hf.data.dataset import CaptionDataset, Collator
from ituning_hf.data.hf_datasets import is_hub_name, read_hf_dataset
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.inputs import PixelInputs
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.sampler import SampleKey
from ituning_hf.data.splits import MissingSplitError

from .conftest import WordProcessor, save_image

pytestmark = pytest.mark.usefixtures("datasets_cache")


def png(colour: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(count: int, first: int = 0, **columns: list[Any]) -> datasets.Dataset:
    """Rows of an image each, inside the row, and of the captions "a 0", "a 1", ..."""
    numbers = range(first, first + count)
    content = {"image": [{"bytes": png(i), "path": None} for i in numbers]}
    content["caption"] = [f"a {i}" for i in numbers]
    return datasets.Dataset.from_dict({**content, **columns}).cast_column("image", datasets.Image())


def write(path: Path, data: datasets.Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path)
    return path


def captions(source: object, split: str = "train", **options: Any) -> dict[str, tuple[str, ...]]:
    return {record.name: record.captions for record in read_hf_dataset(str(source), split, **options)}


def test_a_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "pets[1].parquet", table(3, caption=[" a\n dog", "a cat", "a cow"]))
    records = read_hf_dataset(path, "train", val_share=0.01) + read_hf_dataset(path, "val", val_share=0.01)
    found = {record.name: (record.captions, record.load().getpixel((0, 0))) for record in records}
    assert found == {
        "train[0]": (("a dog",), (0, 0, 0)),
        "train[1]": (("a cat",), (1, 0, 0)),
        "train[2]": (("a cow",), (2, 0, 0)),
    }
    assert records[0].load().mode == "RGB"


def test_lists_of_captions_and_columns_by_name(tmp_path: Path) -> None:
    data = table(2, id=[7, 8], texts=[["a", " ", "b "], ["c"]]).rename_column("image", "photo")
    path = write(tmp_path / "a.parquet", data.add_column("split", ["train", "train"]))
    assert captions(path) == {"train[0]": ("a 0",), "train[1]": ("a 1",)}
    assert captions(path, image_column="photo", caption_column="texts") == {
        "train[0]": ("a", "b"),
        "train[1]": ("c",),
    }
    with pytest.raises(ValueError, match=r"a\.parquet, train has no column 'x', as caption_column says; it"):
        captions(path, caption_column="x")
    with pytest.raises(ValueError, match=r"train\[0\]: 'id' must be a string or a list of strings, got 7$"):
        captions(path, caption_column="id")
    with pytest.raises(ValueError, match=r"column 'id' is of type Value\('int64'\), and neither images nor"):
        captions(path, image_column="id")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), None])
def test_tables_of_other_libraries(tmp_path: Path, kind: pa.DataType | None) -> None:
    contents = [png(i) for i in range(3)]
    images = pa.array(contents, kind) if kind else pa.array([{"bytes": data} for data in contents])
    pq.write_table(
        pa.table({"image": images, "text": ["a", "b", "c"], "split": ["val"] * 3}), tmp_path / "a.parquet"
    )
    records = read_hf_dataset(tmp_path / "a.parquet", "val")
    assert [record.load().getpixel((0, 0)) for record in records] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]


@pytest.mark.parametrize("pattern", ["{}-00000-of-00001.parquet", "data/{}.parquet", "{}/0000.parquet"])
def test_a_folder_of_parquet_files_by_split(tmp_path: Path, pattern: str) -> None:
    for first, name in enumerate(["train", "validation", "test"]):
        write(tmp_path / "pets" / pattern.format(name), table(1, first))
    assert {split: captions(tmp_path / "pets", split) for split in ("train", "val", "test")} == {
        "train": {"train[0]": ("a 0",)},
        "val": {"val[0]": ("a 1",)},
        "test": {"test[0]": ("a 2",)},
    }


def test_files_of_one_split_are_joined(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / "pets" / f"part-{part}.parquet", table(20, 20 * part))
    train, val = captions(tmp_path / "pets"), captions(tmp_path / "pets", "val")
    assert train | val == {f"train[{i}]": (f"a {i}",) for i in range(60)}
    assert 1 <= len(val) <= 15
    assert captions(tmp_path / "pets", "val", seed=1) != val


def test_appended_rows_leave_the_others_on_their_side(tmp_path: Path) -> None:
    few, many = (captions(write(tmp_path / f"{n}.parquet", table(n)), "val") for n in (100, 130))
    assert few.items() <= many.items()
    assert {name for name in many if int(name[6:-1]) < 100} == few.keys()


def test_a_saved_data_set(tmp_path: Path) -> None:
    table(30).with_format("numpy").save_to_disk(tmp_path / "one")
    train, val = captions(tmp_path / "one"), captions(tmp_path / "one", "val")
    assert len(train | val) == 30
    datasets.DatasetDict(train=table(2), val=table(1, 2)).save_to_disk(tmp_path / "several")
    assert captions(tmp_path / "several") == {"train[0]": ("a 0",), "train[1]": ("a 1",)}
    assert captions(tmp_path / "several", "val") == {"val[0]": ("a 2",)}
    with pytest.raises(
        MissingSplitError, match=r"must have one split 'test'; it has 'train' \(2\), 'val' \(1\)$"
    ):
        captions(tmp_path / "several", "test")


def test_a_lone_test_split_is_not_trained_on(tmp_path: Path) -> None:
    datasets.DatasetDict(test=table(2)).save_to_disk(tmp_path / "pets")
    assert len(captions(tmp_path / "pets", "test")) == 2
    with pytest.raises(MissingSplitError, match=r"must have one split 'train'; it has 'test' \(2\)$"):
        captions(tmp_path / "pets")


def test_a_split_column_divides_a_single_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(3, split=["train", "test", "validation"]))
    assert [captions(path, split) for split in ("train", "val", "test")] == [
        {"train[0]": ("a 0",)},
        {"train[2]": ("a 2",)},
        {"train[1]": ("a 1",)},
    ]


def test_rows_of_the_same_image_are_joined(tmp_path: Path) -> None:
    one, two = b"1" * 100, b"2" * 100  # as long, but other pictures
    given = [(one, "1.png"), (two, "1.png"), (one, "1.png"), (one, "2.png"), (one, None), (one, None)]
    same = [{"bytes": content, "path": path} for content, path in given]
    data = table(6, image=same, caption=list("abcdef"), split=["val"] * 6)
    assert captions(write(tmp_path / "a.parquet", data), "val") == {
        "train[0]": ("a", "c"),
        "train[1]": ("b",),
        "train[3]": ("d",),
        "train[4]": ("e", "f"),
    }


def test_file_names(tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "a.png", (9, 8, 7))
    data = datasets.Dataset.from_dict(
        {"path": ["a.png", "./a.png"], "caption": ["a", "b"], "split": ["val"] * 2}
    )
    path = write(tmp_path / "photos" / "a.parquet", data)
    (record,) = load_captioned_images(path, "val")
    assert (record.name, record.captions) == ("a.png", ("a", "b"))
    assert record.source == tmp_path / "photos" / "a.png"
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(
        FileNotFoundError, match=r"1 of the split's 1 images are missing \(.*saved/a\.png\): unpack"
    ):
        load_captioned_images(tmp_path / "saved", "val")
    (record,) = load_captioned_images(tmp_path / "saved", "val", image_root=tmp_path / "photos")
    assert record.load().getpixel((0, 0)) == (9, 8, 7)


def test_images_that_are_paths_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (9, 8, 7))
    images = [{"bytes": None, "path": "a.png"}, {"bytes": png(3), "path": "b.png"}]
    data = table(2, image=images, split=["val"] * 2)
    pq.write_table(data.data.table, tmp_path / "a.parquet")  # to_parquet would take the file inside
    records = load_captioned_images(tmp_path / "a.parquet", "val")
    assert [(record.name, record.load().getpixel((0, 0))) for record in records] == [
        ("a.png", (9, 8, 7)),
        ("train[1]", (3, 0, 0)),
    ]


def test_a_row_without_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2, image=[{"bytes": png(0), "path": None}, None]))
    with pytest.raises(ValueError, match=r"train\[1\]: 'image' must be a file's name, got None$"):
        captions(path)


def test_a_row_without_a_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2, caption=["a", None], split=["val"] * 2))
    with pytest.raises(ValueError, match=r"empty captions for 1 of 2 images \(train\[1\]\)"):
        captions(path, "val")


def turned() -> bytes:
    """A picture stored on its side."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_images_are_decoded_as_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [turned(), png(1, side=300)[:-40], b"", b"nonsense", png(1, side=50)]
    images = [{"bytes": content, "path": None} for content in contents]
    path = write(tmp_path / "a.parquet", table(5, image=images, split=["val"] * 5))
    records = read_hf_dataset(path, "val")
    assert records[0].load().size == (10, 20)
    problems = [
        r"it does not decode \(",
        "the file is empty",
        "it is none of JPEG",
        "it has more than 399",
    ]
    for position, problem in enumerate(problems, start=1):
        if position == 4:
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
        message = rf"^cannot read {path}, train\[{position}\]: {problem}"
        with pytest.raises(UnreadableImageError, match=message):
            records[position].load()


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^cannot read '.*bad\.parquet': Parquet magic bytes not found"):
        captions(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"^cannot read '.*a\.parquet': .*no data"):
        captions(write(tmp_path / "a.parquet", table(1).select([])))


def test_the_hub_is_asked_for_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None) -> datasets.DatasetDict:
        asked.append((name, config))
        return datasets.DatasetDict(train=table(2), validation=table(1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_captioned_images("org/pets", "train")) == 2
    assert len(load_captioned_images("org/pets:small", "val")) == 1
    assert asked == [("org/pets", None), ("org/pets", "small")]


def test_a_hub_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = "^nothing is here, and the Hub did not give a data set, at 'org/pets': .*org/pets"
    with pytest.raises(ValueError, match=message):
        load_captioned_images("org/pets", "train")


def test_file_names_of_the_hub_need_an_image_root(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.Dataset.from_dict({"path": ["a.png"], "caption": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=data))
    with pytest.raises(
        ValueError, match=r"train\[0\]: 'path' is a file's name, 'a\.png': say with image_root"
    ):
        captions("org/pets")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("my-org/name_1.0:config", True),
        ("name", False),
        ("./name", False),
        ("../name", False),
        ("/org/name", False),
        ("org/name/", False),
        ("a/b/c", False),
        ("C:/name", False),
    ],
)
def test_names_of_the_hub(text: str, expected: bool) -> None:
    assert is_hub_name(text) is expected


def test_the_library_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"a\.parquet, run: pip install 'ituning_hf\[train\]'$"):
        captions(tmp_path / "a.parquet")


def test_pickles_hold_no_pixels(tmp_path: Path) -> None:
    noise = [{"bytes": os.urandom(100_000), "path": None} for _ in range(20)]
    path = write(tmp_path / "a.parquet", table(20, image=noise, split=["val"] * 20))
    records = read_hf_dataset(path, "val")
    pickled = pickle.dumps(records)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled)[7].source.read() == noise[7]["bytes"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(tmp_path: Path, word_processor: WordProcessor, method: str) -> None:
    path = write(tmp_path / "a.parquet", table(4, split=["val"] * 4))
    inputs = PixelInputs(word_processor.image_processor)
    dataset = CaptionDataset(read_hf_dataset(path, "val"), inputs, word_processor, 1, 9, 0)
    loader = DataLoader(
        dataset,
        batch_sampler=[[SampleKey(0, i, False) for i in range(4)]],
        collate_fn=Collator(inputs, word_processor, 1),
        num_workers=1,
        multiprocessing_context=method,
    )
    (batch,) = loader
    expected = [dataset[SampleKey(0, i, False)]["image"] for i in range(4)]
    assert batch["unreadable"] == []
    for pixels, wanted in zip(batch["pixel_values"], expected, strict=True):
        assert pixels.equal(wanted)
