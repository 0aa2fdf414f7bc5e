import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples

from ituning_hf.features.quantisation import pack, unpack

TOKENS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
HUGE = np.full((1, 1, 2), np.finfo(np.float32).max)
SUBNORMAL = np.array([[[1e-37, 3e-40, -2e-38]]], dtype=np.float32)


def quantise_one(token: list[float]) -> tuple[list[int], float]:
    """The rule, number by number."""
    scale = float(np.float32(max(abs(number) for number in token)) / np.float32(127))
    return [round(number / scale) if scale else 0 for number in token], scale


def test_a_hand_checked_token():
    packed = pack(torch.tensor([[[127.0, -63.4, 0.4, 0.6, -127.0]]]), "int8")
    assert packed["scales"].tolist() == [[1.0]]
    assert packed["features"].tolist() == [[[127, -63, 0, 1, -127]]]
    assert packed["features"].dtype == torch.int8
    assert unpack(**packed).tolist() == [[[127.0, -63.0, 0.0, 1.0, -127.0]]]


def test_a_naive_quantiser_agrees():
    features = torch.randn(3, 7, 15, generator=torch.Generator().manual_seed(1)) * 5
    packed = pack(features, "int8")
    for image, numbers, scales in zip(features, packed["features"], packed["scales"], strict=True):
        for token, steps, scale in zip(image, numbers, scales, strict=True):
            expected, expected_scale = quantise_one(token.tolist())
            assert scale.item() == expected_scale
            assert max(abs(a - b) for a, b in zip(steps.tolist(), expected, strict=True)) == 0


@given(TOKENS)
@example(HUGE)
@example(SUBNORMAL)
@examples(100, 3000)
def test_no_number_is_off_by_more_than_half_a_scale_and_the_rounding(numbers: np.ndarray):
    features = torch.from_numpy(numbers)
    packed = pack(features, "int8")
    back = unpack(packed["features"], packed["scales"])
    assert back.dtype == torch.bfloat16
    assert back.isfinite().all()
    largest = features.abs().amax(dim=-1, keepdim=True).double()
    error = (back.double() - features.double()).abs()
    # What bfloat16 rounds to below its smallest normal numbers is a multiple of 2**-133.
    assert (error <= largest * (1 / 254 + 1 / 256) * 1.001 + 2.0**-133).all()


@given(TOKENS, st.sampled_from(["bfloat16", "float32"]))
@example(HUGE, "bfloat16")
@examples(100, 3000)
def test_any_finite_number_comes_back_to_the_precision_of_its_storage(numbers: np.ndarray, storage: str):
    features = torch.from_numpy(numbers)
    back = unpack(pack(features, storage)["features"], None).double()
    bound = features.abs().double() / 256 + 2.0**-134 if storage == "bfloat16" else 0
    assert ((back - features.double()).abs() <= bound).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 9))
@examples(100, 3000)
def test_a_token_of_one_number_comes_back_as_in_bfloat16(number: float, width: int):
    features = torch.full((1, 1, width), number)
    expected = pack(features, "bfloat16")["features"].double()
    back = unpack(**pack(features, "int8")).double()
    assert ((back - expected).abs() <= expected.abs() / 128 + 2.0**-133).all()


@given(TOKENS)
@examples(100, 3000)
def test_signs_and_zeros_stay(numbers: np.ndarray):
    features = torch.from_numpy(numbers)
    back = unpack(**pack(features, "int8")).float()
    assert (back * features.sign() >= 0).all()
    assert (back[features == 0] == 0).all()


def test_a_token_of_zeros_comes_back():
    packed = pack(torch.zeros(1, 2, 3), "int8")
    assert packed["scales"].tolist() == [[0.0, 0.0]]
    assert unpack(**packed).tolist() == torch.zeros(1, 2, 3).tolist()


def test_other_numbers_are_cast():
    features = torch.randn(2, 3, 5)
    for storage in ("bfloat16", "float32"):
        packed = pack(features, storage)
        assert packed.keys() == {"features"}
        assert torch.equal(unpack(packed["features"], None), features.to(getattr(torch, storage)))
