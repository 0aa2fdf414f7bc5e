import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples
from safetensors import safe_open

from ituning_hf.features.shards import (
    ImageVersion,
    ShardIndex,
    pack,
    read_index,
    unpack,
    write_shard,
)
from ituning_hf.features.spec import FeatureSpec, describe_encoder
from ituning_hf.utils.errors import UserError

# --- Storages

TOKENS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
HUGE = np.full((1, 1, 2), np.finfo(np.float32).max)
SUBNORMAL = np.array([[[1e-37, 3e-40, -2e-38]]], dtype=np.float32)


def test_a_hand_checked_token():
    packed = pack(torch.tensor([[[127.0, -63.4, 0.4, 0.6, -127.0], [0.0] * 5]]), "int8")
    assert packed["scales"].tolist() == [[1.0, 0.0]]
    assert packed["features"].tolist() == [[[127, -63, 0, 1, -127], [0] * 5]]
    assert packed["features"].dtype == torch.int8
    assert unpack(**packed).tolist() == [[[127.0, -63.0, 0.0, 1.0, -127.0], [0.0] * 5]]


def test_int8_equals_a_naive_quantizer():
    features = torch.randn(3, 7, 15, generator=torch.Generator().manual_seed(1)) * 5
    packed = pack(features, "int8")
    for image, numbers, scales in zip(features, packed["features"], packed["scales"], strict=True):
        for token, steps, scale in zip(image, numbers, scales, strict=True):
            expected = float(np.float32(max(abs(number) for number in token.tolist())) / np.float32(127))
            assert scale.item() == expected
            assert steps.tolist() == [round(number / expected) for number in token.tolist()]


@given(TOKENS)
@example(HUGE)
@example(SUBNORMAL)
@examples(50, 3000)
def test_the_int8_error_is_at_most_half_a_scale_plus_rounding(numbers: np.ndarray):
    features = torch.from_numpy(numbers)
    back = unpack(**pack(features, "int8"))
    assert back.dtype == torch.bfloat16
    assert back.isfinite().all()
    largest = features.abs().amax(dim=-1, keepdim=True).double()
    error = (back.double() - features.double()).abs()
    # bfloat16's smallest numbers are multiples of 2**-133
    assert (error <= largest * (1 / 254 + 1 / 256) * 1.001 + 2.0**-133).all()
    assert (back.float() * features.sign() >= 0).all()
    assert (back[features == 0] == 0).all()


@given(TOKENS, st.sampled_from(["bfloat16", "float32"]))
@example(HUGE, "bfloat16")
@examples(30, 3000)
def test_any_finite_number_is_read_back_in_the_precision_of_its_storage(numbers: np.ndarray, storage: str):
    features = torch.from_numpy(numbers)
    packed = pack(features, storage)
    assert packed.keys() == {"features"}
    back = packed["features"]
    assert back.dtype == getattr(torch, storage)
    bound = features.abs().double() / 256 + 2.0**-134 if storage == "bfloat16" else 0
    assert ((back.double() - features.double()).abs() <= bound).all()


# --- Files

VERSION = ImageVersion(3, "ab")
NAMES = ["train/a b.jpg", "ü/狗.png", "two\nlines", "__metadata__", "x\\udc80", "x\udc80", "C:\\dog.jpg", ""]


@pytest.fixture(scope="module")
def spec(backbones: dict[str, Path]) -> FeatureSpec:
    return describe_encoder(backbones["vision"])


def write(folder: Path, names: list[str], unreadable: dict[str, str] | None = None) -> Path:
    """Write a shard in which the features of image i are all i."""
    features = torch.arange(len(names)).view(-1, 1, 1).expand(-1, 10, 15).to(torch.bfloat16)
    index = ShardIndex(dict.fromkeys(names, VERSION), unreadable or {})
    return write_shard(folder, index, {"features": features.contiguous()})


def test_any_name_is_read_back(tmp_path: Path, spec: FeatureSpec):
    path = write(tmp_path, NAMES, {"bad\udc80": "why"})
    assert read_index(path, spec) == ShardIndex(dict.fromkeys(NAMES, VERSION), {"bad\udc80": "why"})
    with safe_open(path, framework="pt") as file:
        assert file.get_slice("features")[5].unique().tolist() == [5]
    only_unreadable = write(tmp_path, [], {"a": "why"})
    assert read_index(only_unreadable, spec) == ShardIndex({}, {"a": "why"})


def test_equal_shards_have_equal_bytes_and_the_first_free_number(tmp_path: Path):
    first, second = write(tmp_path, ["b", "a"], {"c": "why"}), write(tmp_path, ["b", "a"], {"c": "why"})
    assert [path.name for path in (first, second)] == [f"features-0000{i}.safetensors" for i in (0, 1)]
    assert first.read_bytes() == second.read_bytes()
    first.unlink()
    assert write(tmp_path, ["c"]) == first


def test_other_users_may_read_it(tmp_path: Path):
    umask = os.umask(0o022)
    try:
        path = write(tmp_path, ["a"])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_truncated_file_is_refused(tmp_path: Path, spec: FeatureSpec):
    path = write(tmp_path, ["a", "b"])
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{path.name} is damaged .*: remove it, then run"):
            read_index(path, spec)


def test_a_file_without_an_index_or_of_another_shape_is_refused(tmp_path: Path, spec: FeatureSpec):
    path = write(tmp_path, ["a"])
    path.write_bytes(path.read_bytes().replace(b'"index"', b'"jndex"'))
    with pytest.raises(UserError, match="is damaged"):
        read_index(path, spec)
    wrong = ShardIndex({"a": VERSION})
    path = write_shard(tmp_path, wrong, {"features": torch.zeros(1, 10, 14, dtype=torch.bfloat16)})
    with pytest.raises(UserError, match=r"is damaged \(features of shape .* 14\], expected .* 15\]"):
        read_index(path, spec)


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        write(tmp_path / "gone", ["a"])
