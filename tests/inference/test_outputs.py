"""The outputs of `ituning caption`, without a captioner: what exists stays, and what is refused."""

import codecs
import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import contents

from ituning_hf.inference.outputs import Output, PartsFolder, Sidecars, TableFile, to_column, to_names
from ituning_hf.inference.xmp import EMPTY_PACKET, get_description, set_description
from ituning_hf.utils.errors import UserError
from ituning_hf.utils.ranks import Rank


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(output: Output, *images: str, caption: str = "new") -> None:
    """Write a caption of those images that have none, or are to be replaced."""
    names = to_column(map(output.name_of, images))
    todo = names.filter(output.missing(names))
    for method in (output.write_batch, lambda rows: output.write_all(todo, rows)):
        method([(name, [caption]) for name in to_names(todo)])


A = '{"image": "a", "captions": ["old"]}\n'
B, C = (A.replace('"a"', f'"{name}"').replace("old", "new") for name in "bc")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("x.jsonl", A.strip(), A + B + C),
        ("x.jsonl", A.strip() + "\r", A.replace("\n", "\r\n") + B + C),
        ("x.jsonl", A.replace('"a"', '"FOLDER/a"').replace('["old"]', '"old"'), None),
        ("x.jsonl", '{"image": "./b", "captions": []}\n\n' + A, A + B + C),
        ("x.csv", "image,caption\na,old\nb,\n", "image,caption\na,old\nb,new\nc,new\n"),
        ("x.csv", 'image,caption\nb,""\na,"\nold, "\n\n', 'image,caption\na,"\nold, "\n\nb,new\nc,new\n'),
        # as Excel and pandas write it
        (
            "x.csv",
            "\ufeffby;image;caption\r\nme;a;old",
            "\ufeffby;image;caption\r\nme;a;old\n;b;new\r\n;c;new\r\n",
        ),
        ("x.csv", ",image,caption\n0,a,old\n", ",image,caption\n0,a,old\n,b,new\n,c,new\n"),
    ],
)
def test_rows_are_added_to_a_file_that_somebody_edited(folder, name, before, after):
    before = before.replace("FOLDER", str(folder))
    Path(name).write_text(before, encoding="utf-8", newline="")
    output = TableFile(Path(name), overwrite=False)
    write(output, "a", "b", "c")
    assert Path(name).read_bytes().decode() == (after or before + B + C)
    assert not output.missing(to_column(["a", "b", "c"])).true_count
    backup = Path(f"{name}.bak")
    assert backup.exists() == ('""' in before or "[]" in before or ",\n" in before)
    assert not backup.exists() or backup.read_bytes().decode() == before


def test_rows_are_added_to_a_parquet_file_with_other_columns():
    columns = {"by": ["me", "you"], "image": ["a", "b"], "captions": [["old"], []]}
    types = [pa.string(), pa.large_string(), pa.large_list(pa.string())]
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in zip(columns, types, strict=True)})
    pq.write_table(table, "x.parquet")
    write(TableFile(Path("x.parquet"), overwrite=False), "a", "b", "c")
    assert pq.read_table("x.parquet").schema == table.schema
    rows = [tuple(row.values()) for row in pq.read_table("x.parquet").to_pylist()]
    assert rows == [("me", "a", ["old"]), (None, "b", ["new"]), (None, "c", ["new"])]
    assert pq.read_table("x.parquet.bak") == table


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_overwriting_replaces_the_rows_of_the_given_images_and_keeps_every_version(suffix):
    file = Path(f"x{suffix}")
    versions = []
    for images, caption in [("ab", "1"), ("b", "2"), ("bc", "3"), ("d", "4")]:
        write(TableFile(file, overwrite=True), *images, caption=caption)
        versions.append(file.read_bytes())
    assert [path.read_bytes() for path in (Path(f"{file}.bak"), Path(f"{file}.bak2"))] == versions[:2]
    assert not Path(f"{file}.bak3").exists()  # d had no row
    assert [name for _, name, _ in TableFile(file, False)._read(file)] == ["a", "b", "c", "d"]


def test_every_version_of_a_caption_file_is_kept():
    for suffix, old in [(".txt", b"old\n"), (".xmp", set_description(EMPTY_PACKET, "old"))]:
        file = Path("a.txt" if suffix == ".txt" else "a.jpg.xmp")
        file.write_bytes(old)
        for caption in ("1", "2", "2"):
            write(Sidecars(suffix, Path(), overwrite=True), "a.jpg", caption=caption)
        kept = [Path(f"{file}.bak").read_bytes(), Path(f"{file}.bak2").read_bytes()]
        texts = [
            get_description(content) if suffix == ".xmp" else content.decode().strip() for content in kept
        ]
        assert texts == ["old", "1"]
        assert not Path(f"{file}.bak3").exists()


def test_an_emptied_caption_file_is_written_again():
    Path("a.txt").write_text(" \n")
    Path("b.txt").write_text("\ufeff", encoding="utf-8")
    Path("b.caption").write_text("old")
    write(Sidecars(".txt", Path(), overwrite=False), "a.jpg", "b.jpg")
    assert contents(".") == {
        "a.txt": b"new\n",
        "a.txt.bak": b" \n",
        "b.txt": codecs.BOM_UTF8,
        "b.caption": b"old",
    }


def test_an_xmp_sidecar_begins_with_that_of_lightroom():
    """`dog.xmp` is read where there is no `dog.jpg.xmp`, and stays."""
    own = EMPTY_PACKET.replace(b"</rdf:RDF>", b"<!-- mine --></rdf:RDF>")
    Path("a.xmp").write_bytes(set_description(EMPTY_PACKET, "by hand"))
    Path("b.xmp").write_bytes(own)
    write(Sidecars(".xmp", Path(), overwrite=False), "a.jpg", "b.jpg")
    assert {*contents(".")} == {"a.xmp", "b.xmp", "b.jpg.xmp"}
    assert Path("b.xmp").read_bytes() == own
    assert Path("b.jpg.xmp").read_bytes() == set_description(own, "new")
    with pytest.raises(UserError, match=r"belong to several images, such as a\.xmp"):
        Sidecars(".xmp", Path(), overwrite=False).missing(to_column(["a.jpg", "a.png"]))


def test_a_link_to_a_file_stays_with_its_mode():
    Path("shared").mkdir()
    target = Path("shared/x.jsonl")
    target.write_text(A)
    target.chmod(0o664)
    Path("x.jsonl").symlink_to(target)
    write(TableFile(Path("x.jsonl"), overwrite=False), "b")
    assert Path("x.jsonl").is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == (A + B, 0o664)


def test_the_images_of_a_process_do_not_depend_on_other_images():
    names = [f"{i}.png" for i in range(100)]

    def share(rank: int, count: int) -> list[str]:
        part = PartsFolder(Path("parts"), Rank(rank, 3, rank), overwrite=False)
        return [*to_names(part.share(to_column(names[:count]), Rank(rank, 3, rank))[0])]

    shares = [share(rank, 100) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == sorted(names)
    assert all(20 < len(images) < 50 for images in shares)
    for rank, images in enumerate(shares):
        assert share(rank, 50) == [name for name in images if name in names[:50]]
        Path("parts").mkdir(exist_ok=True)
        write(PartsFolder(Path("parts"), Rank(rank, 3, 0), False), *(f"parts/{name}" for name in images))
    known = PartsFolder(Path("parts"), Rank(0, 1, 0), overwrite=False)  # of another number of processes
    assert known.missing(to_column([*names, "new.png"])).to_pylist() == [False] * 100 + [True]


TYPES = [("image", pa.string()), ("captions", pa.list_(pa.string()))]
NOT_NULL = pa.schema([*TYPES, pa.field("id", pa.int64(), nullable=False)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"image": "a", "captions": ["old"]}\n{"image', "x.jsonl, line 2 is not JSON"),
        (
            "x.jsonl",
            '{"image": "a", "caption": "old"}',
            "x.jsonl, line 1: there are no columns 'image' and 'captions'",
        ),
        (
            "x.jsonl",
            '{"image": 1, "captions": ["old"]}',
            "x.jsonl, line 1: 'image' is 1, expected a file name",
        ),
        ("x.csv", "file;caption\n", "x.csv, line 1: there are no columns 'image' and 'caption'"),
        (
            "x.parquet",
            pa.table({"image": [{"bytes": bytes(99)}], "captions": [["old"]]}),
            "'image' is .{20,60}, expected a",
        ),
        ("x.parquet", pa.table({"image": ["a"], "captions": ["old"]}), "cannot be added to .*parquet"),
        (
            "x.parquet",
            NOT_NULL.empty_table(),
            "added to .*parquet .Column 'id' is declared non-nullable",
        ),
        ("x.csv", "a.jpg,old\n", "x.csv: there is no header line"),
        ("x.parquet", "no Parquet", "x.parquet"),
        ("metadata.jsonl", None, "metadata.jsonl would hide .*metadata.csv: give --output .*metadata.csv"),
    ],
)
def test_a_file_to_which_rows_cannot_be_added_is_refused(name, content, message):
    if isinstance(content, pa.Table):
        pq.write_table(content, name)
    elif content is None:
        Path("metadata.csv").write_text("file_name,caption\na,old\n")
    else:
        Path(name).write_text(content)
    before = contents(".")
    with pytest.raises(UserError, match=message):
        write(TableFile(Path(name), overwrite=True), "a")
    assert contents(".") == before


@pytest.mark.parametrize(
    ("file", "image", "message"),
    [
        ("metadata.jsonl", "../a.png", "describes the images of its folder, and '/.*a.png' is not there"),
        ("metadata.jsonl", "C:a.png", "'C:a.png' is not there on every system"),
        ("metadata.jsonl", "b.png", "would hide .*b.caption: use --format txt"),
        ("x.csv", " a.png", "' a.png' is not valid Unicode, begins or ends with a space"),
        ("x.csv", "a\rb.png", "or has a line break: rename the file, or write a .jsonl file"),
        ("x.parquet", os.fsdecode(b"\xff.png"), "is not valid Unicode, begins"),
    ],
)
def test_an_image_that_an_output_cannot_describe_is_refused(file, image, message):
    Path("b.caption").write_text("old")
    with pytest.raises(UserError, match=message):
        write(TableFile(Path(file), overwrite=False), image)
