"""The names of the images that `ituning caption` finds in datasets."""

import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ituning_hf.inference.outputs import Output, Sidecars, TableFile, to_names
from ituning_hf.inference.pictures import find_pictures
from ituning_hf.utils.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures, tables and shards of them, which give them equal names."""
    monkeypatch.chdir(tmp_path)
    pixels = []
    for i in range(2):
        Image.new("RGB", (8, 8), (100 * i, 0, 0)).save(f"{i}.png")
        pixels.append({"bytes": Path(f"{i}.png").read_bytes(), "path": None})
    table = pa.table({"image": pixels, "caption": ["a", "b"]})
    for name in "ab":
        pq.write_table(table, f"{name}.parquet")
        datasets.Dataset(table).save_to_disk(f"{name}_saved")
        Path(name).mkdir()
        for shard in ("00", "01"):
            write_shard(f"{name}/{shard}.tar", "0")
    Path("tables").mkdir()
    pq.write_table(table, "tables/c.parquet")
    return tmp_path


def write_shard(path: str, key: str) -> None:
    with tarfile.open(path, "w") as shard:
        shard.add("0.png", f"{key}.png")


def find(*arguments: str, output: Output | None = None) -> list[str]:
    """Return the names of images in an output in the working directory."""
    output = output or TableFile(Path("captions.jsonl"), overwrite=False)
    pictures = find_pictures(arguments, None, None, Counter())
    return [*to_names(pictures.names(output).unique())]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ["a.parquet", "./b.parquet"],
            ["a.parquet/train[0]", "a.parquet/train[1]", "b.parquet/train[0]", "b.parquet/train[1]"],
        ),
        (
            ["a_saved/", "b_saved"],
            ["a_saved/train[0]", "a_saved/train[1]", "b_saved/train[0]", "b_saved/train[1]"],
        ),
        (["a/{00..01}.tar", "a/01.tar", "b/*.tar"], ["a/00/0", "a/01/0", "b/00/0", "b/01/0"]),
        (["a", "b/"], ["a/00/0", "a/01/0", "b/00/0", "b/01/0"]),
        (["tables"], ["tables/train[0]", "tables/train[1]"]),
        (["{a,b}/{00,01}.tar"], ["a/00/0", "a/01/0", "b/00/0", "b/01/0"]),
    ],
)
def test_a_name_has_the_dataset_as_a_path(folder, arguments, names, monkeypatch):
    assert find(*arguments) == names
    absolute = [os.path.join(folder, argument) for argument in arguments]
    assert find(*absolute) == names
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert find(*absolute) == [str(folder / name) for name in names]


def test_images_of_datasets_are_read_and_printed_by_these_names():
    pictures = find_pictures(["b.parquet", "a/01.tar", "0.png"], None, None, Counter())
    assert [getattr(picture, "name", picture) for picture in pictures] == [
        "b.parquet/train[0]",
        "b.parquet/train[1]",
        "a/01/0",
        "0.png",
    ]
    assert [picture.load().getpixel((0, 0))[0] for picture in [*pictures][:3]] == [0, 100, 0]


def test_different_images_of_one_name_are_refused():
    write_shard("x.tar", "y/0")
    Path("x").mkdir()
    write_shard("x/y.tar", "0")
    assert find("x.tar", "a/00.tar", os.path.abspath("x.tar")) == ["x/y/0", "a/00/0"]
    with pytest.raises(UserError, match="several images are named 'x/y/0'"):
        find("x.tar", "x/y.tar")


@pytest.mark.parametrize("argument", ["a.parquet", "a/00.tar"])
def test_files_beside_images_that_are_not_files_are_refused(argument):
    for output in (Sidecars(".txt", Path(), False), TableFile(Path("metadata.csv"), False)):
        with pytest.raises(UserError, match="is not a file: use --output"):
            find("0.png", argument, output=output)


def test_caption_files_are_not_images_of_a_glob_or_of_a_shell():
    Path("photos").mkdir()
    for name in ("0.png", "0.txt", "0.txt.bak2", "0.png.xmp", "no suffix", "0.mp4"):
        shutil.copy("0.png", f"photos/{name}")
    left_out = Counter[str]()
    assert [*find_pictures(["photos/*"], None, None, left_out)] == ["photos/0.png"]
    assert left_out == {".txt": 1, ".bak2": 1, ".xmp": 1, "": 1, ".mp4": 1}
    named = sorted(map(str, Path("photos").iterdir()))
    assert [*find_pictures(named, None, None, left_out)] == [*named[:2], "photos/no suffix"]


@pytest.mark.parametrize(
    ("row", "name"),
    [("0.png", None), ("a/0.png", "images/a/0.png"), (r"b\0.png", "b/0.png"), ("0.png#0", "0.png")],
)
def test_a_table_that_is_also_the_output_names_images_alike(row, name):
    shutil.copy("0.png", "b/0.png")
    Path("images/a").mkdir(parents=True)
    shutil.copy("0.png", "images/a/0.png")
    Path("c.csv").write_text(f"image,caption\n{row},by hand\n")
    output = TableFile(Path("c.csv"), overwrite=False)
    if name is None:
        assert find("c.csv", output=output) == [row]
    else:
        with pytest.raises(UserError, match=f"from its folder is '{name}' and is written there otherwise"):
            find("c.csv", output=output)
