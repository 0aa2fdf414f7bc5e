"""Tar shards: their addresses, their samples, and damage."""

import json
import logging
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from small_shards import colour_samples, png, tar_bytes, write_shards

from ituning_hf.data import load_captioned_images, shards
from ituning_hf.data.columns import FilePart
from ituning_hf.data.folders import folder_format
from ituning_hf.data.records import MissingSplitError
from ituning_hf.data.shards import Shard, expand_braces, find_shards, read_shards, select_shards
from ituning_hf.utils.errors import UserError, WorkError

from .conftest import captions

# --- Addresses


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{train,val}/x", ["train/x", "val/x"]),
        ("{a,}b", ["ab", "b"]),
        ("{0..1}-{a,b}", ["0-a", "0-b", "1-a", "1-b"]),
        ("x{a{0..1},b}y", ["xa0y", "xa1y", "xby"]),
        ("{train-{0..1},val-{0..0}}.tar", ["train-0.tar", "train-1.tar", "val-0.tar"]),
        ("{2..1}", []),
    ],
)
def test_braces_expand_as_in_bash(pattern: str, expected: list[str]):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("pattern", ["{0..2.tar", "{{0..2}.tar", "{}.tar", "{a}.tar", "{0..b}.tar"])
def test_other_braces_are_refused(pattern: str):
    with pytest.raises(UserError, match=r"brace|range"):
        expand_braces(pattern)


def test_patterns_and_folders_find_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = write_shards(tmp_path / "x", [1, 1, 1])
    expected = dict(zip(["000", "001", "002"], paths, strict=True))
    for dataset in ("{000..002}.tar", "*.tar", "00[0-2].tar", "00?.tar"):
        assert find_shards(f"{tmp_path}/x/{dataset}") == expected
    (tmp_path / "x" / "notes.md").write_text("")
    (tmp_path / "x" / "._000.tar").write_text("")
    assert find_shards(f"{tmp_path}/x") == find_shards(f"{tmp_path}/x/") == expected
    monkeypatch.chdir(tmp_path / "x")
    assert find_shards("001.tar") == {"001": "001.tar"}
    assert list(find_shards(".")) == ["000", "001", "002"]


def test_names_begin_after_the_folder_that_all_shards_share(tmp_path: Path):
    for split in ("train", "val"):
        write_shards(tmp_path / split, [1, 1])
    expected = ["train/000", "train/001", "val/000", "val/001"]
    assert list(find_shards(str(tmp_path))) == expected
    assert list(find_shards(f"{tmp_path}/{{train,val}}/{{000..001}}.tar")) == expected
    assert list(find_shards("s3://bucket/a/{b,c}/{0..1}.tar")) == ["b/0", "b/1", "c/0", "c/1"]


def test_a_path_with_braces_is_taken_as_it_is(tmp_path: Path):
    write_shards(tmp_path / "{a,b}", [1], "{{0..9}}.tar")
    assert list(find_shards(f"{tmp_path}/{{a,b}}/{{0..9}}.tar")) == ["{0..9}"]


@pytest.mark.parametrize("others", [["x/dog.jpg", "x/dog.txt"], ["metadata.jsonl"], ["Test/metadata.csv"]])
def test_a_folder_of_captioned_pictures_may_contain_other_files(tmp_path: Path, others: list[str]):
    write_shards(tmp_path, [1])
    (tmp_path / "features.parquet").touch()
    (tmp_path / "logo.png").touch()
    assert list(find_shards(str(tmp_path))) == ["000"]
    for other in others:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    assert find_shards(str(tmp_path)) == {}
    assert folder_format(tmp_path) == ("caption files" if len(others) > 1 else "metadata")


@pytest.mark.parametrize("dataset", ["scenes", "photos/", "org/name", "x.tar.gz", "s3://bucket/x.parquet"])
def test_other_datasets_are_not_shards(dataset: str):
    assert find_shards(dataset) == {}


def test_missing_shards_are_named(tmp_path: Path):
    write_shards(tmp_path, [1])
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards are missing \(.*001\.tar, .*002\.tar\)"):
        find_shards(f"{tmp_path}/{{000..002}}.tar")
    with pytest.raises(FileNotFoundError, match="no shards match"):
        find_shards(f"{tmp_path}/x*.tar")


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["0", "1"], "train", (["0", "1"], None)),
        (["0", "1"], "val", (["0", "1"], None)),
        (["x-train-0", "x-train-1"], "val", (["x-train-0", "x-train-1"], None)),
        (["x-train-0", "x-validation-0"], "val", (["x-validation-0"], "val")),
        (["x-train-0", "x-validation-0"], "train", (["x-train-0"], "train")),
        (["0", "x-dev-0"], "train", (["0"], "train")),
        (["test/train-0", "test/train-1"], "train", (["test/train-0", "test/train-1"], None)),
    ],
)
def test_names_state_splits(names: list[str], split: str, expected: tuple):
    selected, stated = select_shards({name: f"/data/{name}.tar" for name in names}, split, "x")
    assert (list(selected), stated) == expected


def test_the_folder_of_one_split_states_it(tmp_path: Path):
    found = {"0": "/data/val/0.tar"}
    assert select_shards(found, "val", "x") == (found, "val")
    with pytest.raises(MissingSplitError, match=r"no images of split 'test'; it has 'val' \(1\)"):
        select_shards(found, "test", "x")


# --- Samples


def read(members: dict[str, bytes], tmp_path: Path) -> dict[str, tuple[str, ...]]:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(members))
    return {image.name: image.captions for image in read_shards({"x": str(path)})}


def test_members_are_grouped_by_key_wherever_they_are(tmp_path: Path):
    captions = read(
        {
            "a/1.png": png(),
            "a/2.txt": b"two",
            "b/1.txt": b"other",
            "a/1.txt": b"one\n\n  second  line \n",
            "b/1.v2.png": png(),
            "a/2.JPG": png(),
            "README": b"",
            "b/1.png": png(),
        },
        tmp_path,
    )
    assert captions == {"x/a/1": ("one", "second line"), "x/a/2": ("two",), "x/b/1": ("other",)}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"1.caption": b"a\nb"}, ("a", "b")),
        ({"1.json": b'{"caption": "a"}'}, ("a",)),
        ({"1.json": b'\xef\xbb\xbf{"captions": ["a", "b"], "url": "x"}'}, ("a", "b")),
        ({"1.json": b'{"captions": null, "caption": [], "text": "a"}'}, ("a",)),
        ({"1.json": b'{"caption": "json"}', "1.txt": b"text"}, ("text",)),
        ({"1.txt": b"text", "1.json": b'{"caption": "json"}'}, ("text",)),
        ({"1.txt": b" \n", "1.json": b'{"caption": "json"}'}, ("json",)),
        ({"1.txt": "\ufeffa\u2028b\r\nc\x85d\n".encode()}, ("a b", "c d")),
        *[({"1.json": text}, ()) for text in (b"[1]", b'{"caption": null}', b"{}")],
        ({"1.txt": b" \n"}, ()),
        ({"1.cls": b"7"}, ()),
    ],
)
def test_captions_are_lines_or_a_field(members: dict, expected: tuple, tmp_path: Path):
    assert read({"1.png": png(), **members}, tmp_path) == {"x/1": expected}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("txt", "caf\u00e9".encode("latin-1"), "not UTF-8 text, it seems to be Windows-1252"),
        ("caption", "dog".encode("utf-16"), "seems to be UTF-16: save it as UTF-8"),
        ("json", b"{", "is not JSON"),
        ("json", b"[" * 100_000, "is not JSON"),
        ("json", b'{"captions": ["a", 3]}', r"'captions' must be a string or a list .* got \['a', 3\]"),
    ],
)
def test_a_member_that_is_not_captions_is_refused_by_name(
    tmp_path: Path, kind: str, content: bytes, message: str
):
    with pytest.raises(UserError, match=rf"x\.tar, member a/1\.{kind}.*{message}"):
        read({"a/1.png": png(), f"a/1.{kind}": content}, tmp_path)
    if kind != "json":
        (tmp_path / f"1.{kind}").write_bytes(content)
        (tmp_path / "1.png").write_bytes(png())
        (tmp_path / "x.tar").unlink()
        with pytest.raises(UserError, match=rf"1\.{kind} .*{message}"):
            load_captioned_images(tmp_path, "train")


def test_images_without_caption_and_of_repeated_names_are_left_out_and_counted(tmp_path: Path, caplog):
    members = colour_samples(range(3)) | {
        "a.png": png(),
        "b.png": png(),
        "b.txt": b"\n",
        "c.txt": b"no image",
        "00001.webp": b"",
    }
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    images = load_captioned_images(tmp_path / "x.tar", "all")
    assert [image.name for image in images] == ["x/00000", "x/00001", "x/00002"]
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "1 images have the name of another or link to no earlier file, and are left out (00001.webp)",
        "2 of 5 images have no caption and are left out (x/a, x/b)",
    ]


def test_a_local_image_is_a_part_of_the_file_and_a_remote_one_its_bytes(tmp_path: Path):
    members = colour_samples(range(4))
    content = tar_bytes(members)
    (tmp_path / "x.tar").write_bytes(content)
    fsspec.filesystem("memory").pipe("/here/x.tar", content)
    local, remote = (list(read_shards({"x": at})) for at in (str(tmp_path / "x.tar"), "memory://here/x.tar"))
    for ours, theirs in zip(local, remote, strict=True):
        assert isinstance(ours.source, FilePart)
        assert theirs.source == ours.read() == members[f"{ours.name.removeprefix('x/')}.png"]
        assert (ours.name, ours.captions) == (theirs.name, theirs.captions)
        assert ours.load().size == theirs.load().size


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_with_long_names(format: int, tmp_path: Path):
    key = "folder" * 20 + "/" + "k" * 90
    key = key if format != tarfile.USTAR_FORMAT else "f" * 90 + "/" + "k" * 80
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"{key}.png": png(), f"{key}.txt": b"a"}, format))
    (image,) = read_shards({"x": str(tmp_path / "x.tar")})
    assert (image.name, image.captions, image.read()) == (f"x/{key}", ("a",), png())


@pytest.mark.parametrize("target", ["/etc/passwd", "a/lost.png", "a/1.png", "1.png"])
def test_links_to_earlier_members_have_their_content(tmp_path: Path, caplog, target: str):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"a/1.png": png(), "a/1.txt": b"one"}))
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"a/link{kind.decode()}.png")
            member.type, member.linkname = kind, target
            tar.addfile(member)
    found = {image.name.removeprefix("x/a/"): image.read() for image in read_shards({"x": str(path)})}
    linked = {"a/1.png": ["link1"], "1.png": ["link2"]}.get(target, [])
    assert found == dict.fromkeys(["1", *linked], png())
    names = [f"a/{name}.png" for name in ("link2", "link1") if name not in linked]
    (message,) = caplog.messages
    assert f"{len(names)} images have the name of another or link to no earlier file" in message
    assert message.endswith(f"({', '.join(names)})")


def test_files_of_macos_are_passed_over(tmp_path: Path):
    assert list(read({"._1.png": png(), ".png": png(), "1.png": png(), "1.txt": b"a"}, tmp_path)) == ["x/1"]


def test_names_that_are_not_utf8_are_read(tmp_path: Path):
    keys = ["caf\udce9", "caf\udce8"]
    members = {key + suffix: content for suffix, content in ((".png", png()), (".txt", b"a")) for key in keys}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members, tarfile.GNU_FORMAT))
    assert captions(tmp_path / "x.tar", "all") == {f"x/{key}": ("a",) for key in keys}


# --- Damage


def test_a_truncated_shard_has_its_complete_samples_and_says_so(tmp_path: Path):
    content = tar_bytes(colour_samples(range(4)))
    complete = tmp_path / "complete.tar"
    complete.write_bytes(content)
    samples = [image.read() for image in read_shards({"x": str(complete)})]
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512  # what follows are empty blocks
    for length in range(0, len(content), 100):
        path = tmp_path / "x.tar"
        path.write_bytes(content[:length])
        shard = Shard("x", str(path))
        images = [shard[index] for index in range(len(shard))]
        assert [image.read() for image in images] == samples[: len(images)]
        assert (shard.damage is None) == (length >= end), length


@pytest.mark.parametrize(
    ("damage", "count"),
    [
        (lambda content: content[:2048] + b"\xff" * 512 + content[2560:], 1),
        (lambda content: b"\x1f\x8b" + content, 0),
        (lambda content: b"<html>no such bucket</html>", 0),
        (lambda content: b"", 0),
    ],
)
def test_a_damaged_shard_is_refused_by_name(damage, count: int, tmp_path: Path):
    path = tmp_path / "x.tar"
    path.write_bytes(damage(tar_bytes(colour_samples(range(4)))))
    shard = Shard("x", str(path))
    assert len(shard) == count
    with pytest.raises(UserError, match=r"x\.tar is damaged: .*\. Copy or download it again"):
        list(read_shards({"x": str(path)}))


# --- Remote shards


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve `tmp_path` on this machine; return its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_shards_are_read_over_http(server: str, tmp_path: Path):
    write_shards(tmp_path, [2, 3])
    images = load_captioned_images(f"{server}/{{000..001}}.tar", "train", val_share=0.2)
    local = load_captioned_images(str(tmp_path), "train", val_share=0.2)
    assert [image.read() for image in images] == [image.read() for image in local]
    assert images.fingerprint() == local.fingerprint()
    with pytest.raises(WorkError, match=r"/002\.tar cannot be downloaded"):
        load_captioned_images(f"{server}/002.tar", "train")


def test_wildcards_of_an_address(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for name in ("000", "001"):
        memory.pipe(f"/wild/{name}.tar", tar_bytes(colour_samples([int(name)])))
    assert find_shards("memory://wild/*.tar") == {n: f"memory:///wild/{n}.tar" for n in ("000", "001")}
    with pytest.raises(FileNotFoundError, match="no shards match"):
        find_shards("memory://wild/x*.tar")


def test_a_download_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    content = tar_bytes(colour_samples([0]))
    memory = fsspec.filesystem("memory")
    memory.pipe("/flaky/0.tar", content)
    failures = iter([OSError("reset by peer"), OSError("reset by peer"), None])
    opened = type(memory).open

    def flaky(self, *args, **kwargs):
        if error := next(failures, None):
            raise error
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(type(memory), "open", flaky)
    waits: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    assert [image.name for image in read_shards({"0": "memory://flaky/0.tar"})] == ["0/00000"]
    assert waits == [1, 4]
    assert "reset by peer; trying again in 1 s" in caplog.text


def test_an_unknown_protocol_is_one_clear_error():
    with pytest.raises(UserError, match=r"'nosuch://x/0.tar' cannot be read: Protocol not known"):
        list(read_shards(find_shards("nosuch://x/0.tar")))


def test_the_copy_of_a_remote_shard_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """So nothing is left when the process is killed."""
    monkeypatch.setattr(shards.tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").pipe("/one/0.tar", tar_bytes(colour_samples([0])))
    shard = Shard("0", "memory://one/0.tar")
    assert shard[0].captions == ("a red dog",)
    assert os.listdir(tmp_path) == []


# --- As a dataset


def test_shards_are_a_dataset_like_any_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_shards(tmp_path, [20, 7, 0, 23])
    splits = {split: load_captioned_images(str(tmp_path), split, seed=3) for split in ("train", "val")}
    names = [[image.name for image in images] for images in splits.values()]
    everything = sorted(image.name for image in read_shards(find_shards(str(tmp_path))))
    assert sorted(names[0] + names[1]) == everything
    assert len(everything) == 50
    assert len(names[1]) < 15
    assert caplog.at_level(logging.WARNING)
    with pytest.raises(UserError, match="--image_root cannot be used with tar shards"):
        load_captioned_images(f"{tmp_path}/*.tar", "train", image_root=tmp_path)


def test_images_without_captions_can_be_loaded(tmp_path: Path):
    (tmp_path / "test.tar").write_bytes(
        tar_bytes({"1.png": png(), "2.png": png(), "2.json": json.dumps({}).encode()})
    )
    images = load_captioned_images(tmp_path / "test.tar", "test", require_captions=False)
    assert [(image.name, image.captions) for image in images] == [("test/1", ()), ("test/2", ())]
