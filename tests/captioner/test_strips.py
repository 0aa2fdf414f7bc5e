"""Cutting the ends off extremely long images, which the center crop would drop after resizing."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from ituning_hf.captioner.processing_ituning import crop_extreme_aspect, prepare_images


@pytest.mark.parametrize("size", [(400, 3), (1001, 13), (7, 1000), (33, 1), (1, 34), (5011, 107)])
def test_a_cut_strip_gives_the_same_pixels(size: tuple[int, int]) -> None:
    """Up to rounding: CLIP's resizing truncates the length of the strip to whole pixels."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    prepare = CLIPImageProcessorPil(do_normalize=False, do_rescale=False)
    whole, cut = (
        prepare(i, return_tensors="np")["pixel_values"] for i in (image, crop_extreme_aspect(image))
    )
    assert max(crop_extreme_aspect(image).size) <= 32 * min(size) < max(size)
    assert np.abs(whole.astype(int) - cut.astype(int)).max() <= 3
    assert (whole != cut).mean() < 0.3


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 24, "width": 24}, "do_center_crop": False},
        {"size": {"height": 24, "width": 24}},
        {"do_resize": False},
    ],
)
def test_nothing_is_cut_if_the_processor_uses_more_than_the_middle(settings: dict) -> None:
    row = np.linspace(0, 255, 4000, dtype=np.uint8)[:, None]
    strip = Image.fromarray(np.tile(row, (20, 1, 1, 3))[:, :, 0])
    plain = CLIPImageProcessorPil()
    own = CLIPImageProcessorPil(**settings)
    expected = own(images=[strip], return_tensors="np")["pixel_values"]
    for processor, options in ((own, {}), (plain, settings)):
        found = prepare_images(processor, [strip], return_tensors="np", **options)["pixel_values"]
        assert np.array_equal(found, expected)


def test_only_strips_are_cut() -> None:
    images = [Image.new("RGB", (32, 1)), Image.new("RGB", (3, 96)), np.zeros((1, 400, 3), np.uint8)]
    assert all(a is b for a, b in zip(crop_extreme_aspect(images), images, strict=True))
