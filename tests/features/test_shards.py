import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples

from ituning_hf.data.columns import CaptionedImage, CaptionedImages
from ituning_hf.features.store import FeatureSpec, FeatureStore
from ituning_hf.utils.errors import UserError

from .conftest import Build, Records, save_noise, shards

# --- Storages

LARGEST = torch.finfo(torch.bfloat16).max
TOKENS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(-LARGEST, LARGEST, width=32),
)
HUGE = np.full((1, 1, 2), LARGEST, np.float32)
SUBNORMAL = np.array([[[1e-37, 3e-40, -2e-38]]], dtype=np.float32)


def spec_of(features: torch.Tensor, storage: str) -> FeatureSpec:
    return FeatureSpec({}, {}, -1, storage, "no", *features.shape[1:])


def store_and_read(features: torch.Tensor, storage: str) -> torch.Tensor:
    spec = spec_of(features, storage)
    packed = spec.pack(features)
    assert packed.shape == (len(features), spec.num_bytes)
    return torch.stack([spec.unpack(content.clone()) for content in packed])


def test_a_hand_checked_token():
    features = torch.tensor([[[127.0, -63.4, 0.4, 0.6, -127.0], [0.0] * 5]])
    spec = spec_of(features, "int8")
    (packed,) = spec.pack(features)
    assert packed[:8].view(torch.float32).tolist() == [1.0, 0.0]
    assert packed[8:].view(torch.int8).tolist() == [127, -63, 0, 1, -127, *[0] * 5]
    assert spec.unpack(packed).tolist() == [[127.0, -63.0, 0.0, 1.0, -127.0], [0.0] * 5]


def test_int8_equals_a_naive_quantizer():
    features = torch.randn(3, 7, 15, generator=torch.Generator().manual_seed(1)) * 5
    for image, packed in zip(features, spec_of(features, "int8").pack(features), strict=True):
        scales, numbers = packed[:28].clone().view(torch.float32), packed[28:].view(torch.int8).view(7, 15)
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
    back = store_and_read(features, "int8")
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
    back = store_and_read(features, storage)
    assert back.dtype == getattr(torch, storage)
    bound = features.abs().double() / 256 + 2.0**-134 if storage == "bfloat16" else 0
    assert ((back.double() - features.double()).abs() <= bound).all()


# --- Files

NAMES = [
    "train/a b.jpg",
    "ü/狗.png",
    "two\nlines",
    "__metadata__",
    "x\\udc80",
    "x\udc80",
    "C:\\dog.jpg",
    "0",
    " ",
]


def test_any_name_is_read_back(tmp_path: Path, build: Build, folder: Path):
    save_noise(tmp_path / "a.bmp", seed=3)
    build(CaptionedImages.from_images(CaptionedImage(name, ("a",), tmp_path / "a.bmp") for name in NAMES))
    store = FeatureStore(folder)
    assert len(store) == len(NAMES)
    for name in NAMES:
        assert store.read(name).abs().sum() > 0


def test_other_users_may_read_it(build: Build, train: Records, folder: Path):
    umask = os.umask(0o022)
    try:
        build(train)
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in shards(folder)} == {0o644}


def test_a_truncated_file_is_refused(store: FeatureStore, folder: Path):
    path = shards(folder)[0]
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{path.name} is damaged .*: remove it, then run"):
            FeatureStore(folder)


def test_a_file_of_another_store_is_refused(
    build: Build, store: FeatureStore, train: Records, folder: Path, tmp_path: Path
):
    build(train, tmp_path / "other", storage="float32")
    path = shards(tmp_path / "other")[0]
    shutil.copy(path, folder / "features-1.arrow")
    with pytest.raises(UserError, match=r"features-1\.arrow is damaged \(Schema"):
        FeatureStore(folder)
