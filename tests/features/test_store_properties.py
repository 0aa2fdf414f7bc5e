"""Stores of any features, cut in any way, in any order, stopped at any write: all of it comes back."""

import random
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples

from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.records import CaptionedImage
from ituning_hf.features.arguments import STORAGES
from ituning_hf.features.build import build_features, write_shard
from ituning_hf.features.encoder import describe_encoder
from ituning_hf.features.pictures import Picture
from ituning_hf.features.quantisation import pack, unpack
from ituning_hf.features.shards import ShardIndex, Unreadable
from ituning_hf.features.spec import write_spec
from ituning_hf.features.store import FeatureStore

from .conftest import contents, save_picture

FEATURES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(
    features=FEATURES,
    names=st.lists(st.text(st.characters(codec=None), max_size=6), unique=True, min_size=4, max_size=4),
    storage=st.sampled_from(STORAGES),
    size=st.integers(1, 4),
    unreadable=st.sets(st.integers(0, 3)),
    order=st.permutations(range(4)),
)
@examples(40, 500)
def test_whatever_is_written_comes_back(
    backbones: dict[str, Path],
    features: np.ndarray,
    names: list[str],
    storage: str,
    size: int,
    unreadable: set[int],
    order: list[int],
):
    spec = describe_encoder(backbones["vision"], storage=storage)
    packed = pack(torch.from_numpy(features), storage)
    images = [i for i in order if i < len(features)]
    with tempfile.TemporaryDirectory() as folder:
        write_spec(Path(folder), spec)
        for start in range(0, len(images), size):
            shard = images[start : start + size]
            readable = [i for i in shard if i not in unreadable]
            index = ShardIndex(
                spec.digest(),
                {names[i]: Picture(i, f"{i}") for i in readable},
                {names[i]: Unreadable(Picture(i, None), f"reason {i}") for i in shard if i in unreadable},
            )
            tensors = {names[i]: {kind: part[i] for kind, part in packed.items()} for i in readable}
            write_shard(Path(folder), index, tensors)
        store = FeatureStore(folder)
        assert store.names == {names[i] for i in images if i not in unreadable}
        assert store.unreadable == {names[i]: f"reason {i}" for i in images if i in unreadable}
        for i in images:
            if i in unreadable:
                with pytest.raises(UnreadableImageError, match=f"reason {i}"):
                    store.read(names[i])
                continue
            expected = unpack(packed["features"][i], packed["scales"][i] if storage == "int8" else None)
            assert store.read(names[i]).dtype == expected.dtype
            assert torch.equal(store.read(names[i]), expected)


class StopError(Exception):
    """A build that ends where the test wants it to."""


def build_in_parts(
    records: list[CaptionedImage], folder: Path, stops: list[int], options: dict[str, Any]
) -> None:
    """Build, stopped after the first so many writes again and again, until it is whole."""
    for left in stops:
        with pytest.MonkeyPatch.context() as patch:

            def stopping(*arguments: Any, allowed: list[None] = [None] * left) -> Path:
                if not allowed:
                    raise StopError
                allowed.pop()
                return write_shard(*arguments)

            patch.setattr("ituning_hf.features.build.write_shard", stopping)
            with suppress(StopError):
                build_features(records, folder, **options)
    build_features(records, folder, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    """Seven pictures, two of them none."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(7):
        save_picture(folder / f"{i}.bmp", seed=i)
    for i in (2, 5):
        (folder / f"{i}.bmp").write_bytes(b"no picture")
    return [CaptionedImage(f"{i}.bmp", ("a",), folder / f"{i}.bmp") for i in range(7)]


@given(
    count=st.integers(1, 7),
    order=st.randoms(use_true_random=False),
    size=st.integers(1, 8),
    batch_size=st.integers(1, 4),
    storage=st.sampled_from(STORAGES),
    stops=st.lists(st.integers(0, 3), max_size=3),
)
@example(7, random.Random(0), 2, 3, "int8", [0, 1, 1])
@examples(8, 100)
def test_a_build_stopped_at_any_writes_is_as_if_nothing_had_happened(
    backbones: dict[str, Path],
    pictures: list[CaptionedImage],
    count: int,
    order: random.Random,
    size: int,
    batch_size: int,
    storage: str,
    stops: list[int],
):
    records = order.sample(pictures, count)
    options = {"vision_model": backbones["vision"], "storage": storage, "shard_size": size}
    options |= {"batch_size": batch_size, "num_workers": 0, "device": "cpu"}
    with tempfile.TemporaryDirectory() as root:
        whole, cut = Path(root, "whole"), Path(root, "cut")
        build_features(records, whole, **options)
        build_in_parts(records, cut, stops, options)
        store, names = FeatureStore(cut), {record.name for record in records}
        assert store.unreadable.keys() == names & {"2.bmp", "5.bmp"}
        assert store.names == names - store.unreadable.keys()
        assert contents(cut) == contents(whole)
