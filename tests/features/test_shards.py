import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ituning_hf.features.pictures import Picture
from ituning_hf.features.shards import (
    ShardIndex,
    Unreadable,
    list_shards,
    read_index,
    sweep_drafts,
    tensor_name,
    write_shard,
)

PICTURE, SPEC = Picture(3, "ab"), "0123"
NAMES = ["train/a b.jpg", "ü/狗.png", "two\nlines", "__metadata__", "x\\udc80", "x\udc80", "C:\\dog.jpg", ""]


def packed(names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"features": torch.full((2, 3), float(i))} for i, name in enumerate(names)}


def test_any_name_comes_back(tmp_path: Path):
    index = ShardIndex(
        SPEC, dict.fromkeys(NAMES, PICTURE), {"bad\udc80": Unreadable(Picture(0, None), "why")}
    )
    path = write_shard(tmp_path, index, packed(NAMES))
    assert read_index(path, SPEC) == index
    with safe_open(path, framework="pt") as file:
        assert len(file.keys()) == len(NAMES)
        for i, name in enumerate(NAMES):
            assert file.get_tensor(tensor_name("features", name)).tolist() == [[i] * 3] * 2


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_two_names_are_two_tensors(one: str, other: str):
    assert (tensor_name("features", one) == tensor_name("features", other)) == (one == other)
    tensor_name("features", one).encode()


def test_a_name_and_bytes_are_of_images_and_spec_alone(tmp_path: Path):
    names = ["b", "a", "c"]
    index = ShardIndex(SPEC, dict.fromkeys(names, PICTURE), {})
    turned = ShardIndex(SPEC, dict.fromkeys(reversed(names), PICTURE), {})
    first = write_shard(tmp_path, index, packed(names))
    before = first.read_bytes()
    tensors = packed(names)
    assert write_shard(tmp_path, turned, {name: tensors[name] for name in sorted(names)}) == first
    assert first.read_bytes() == before
    others = [
        ShardIndex(SPEC, index.pictures | {"c": Picture(4, "ab")}, {}),
        ShardIndex(SPEC, index.pictures | {"c": Picture(3, "cd")}, {}),
        ShardIndex(SPEC, index.pictures, {"d": Unreadable(PICTURE, "why")}),
    ]
    others.append(replace(index, spec="4567"))
    assert len({index.file_name(), *(other.file_name() for other in others)}) == 5


def test_others_may_read_it(tmp_path: Path):
    umask = os.umask(0o022)
    try:
        path = write_shard(tmp_path, ShardIndex(SPEC, {"a": PICTURE}, {}), packed(["a"]))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_is_cut_short_or_changed_is_refused(tmp_path: Path):
    path = write_shard(tmp_path, ShardIndex(SPEC, {"a": PICTURE, "b": PICTURE}, {}), packed(["a", "b"]))
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    unnoticed = []
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{path.name} is damaged .*: remove it, and build its images"):
            read_index(path, SPEC)
    for position in range(8 + header):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            read_index(path, SPEC)
        except ValueError:
            continue
        unnoticed.append(content[8:][position - 8 :][:1])
    # One bit in the header that is neither the index nor the tensors' places: a space that fills it up.
    assert set(unnoticed) <= {b" "}


def test_another_name_is_refused(tmp_path: Path):
    path = write_shard(tmp_path, ShardIndex(SPEC, {"a": PICTURE}, {}), packed(["a"]))
    moved = path.rename(tmp_path / "features-0123456789abcdef.safetensors")
    with pytest.raises(ValueError, match="its name is not that of what it holds"):
        read_index(moved, SPEC)


def test_drafts_are_no_shards_and_are_swept(tmp_path: Path):
    path = write_shard(tmp_path, ShardIndex(SPEC, {"a": PICTURE}, {}), packed(["a"]))
    for name in (f".{path.name}.partial", ".store.json.partial"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "my notes.partial").write_text("mine")
    assert list_shards(tmp_path) == [path]
    sweep_drafts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "my notes.partial"]


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        write_shard(tmp_path / "gone", ShardIndex(SPEC, {"a": PICTURE}, {}), packed(["a"]))
