import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from properties import examples

from ituning_hf.data.augmentation import AUGMENTATIONS, augment
from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.dataset import CaptionDataset
from ituning_hf.data.inputs import PixelInputs
from ituning_hf.data.sampler import SampleKey
from ituning_hf.data.scenes import make_scene
from ituning_hf.training import arguments

from .conftest import WordProcessor

KEYS = st.tuples(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 10**6))
CAPTIONS = tuple("w" * length for length in range(1, 8))


def noise(width: int = 31, height: int = 23) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(first: Image.Image, second: Image.Image) -> bool:
    return (first.size, first.tobytes()) == (second.size, second.tobytes())


def test_the_settings_offer_all_augmentations() -> None:
    assert arguments.AUGMENTATIONS == AUGMENTATIONS


@examples(10, 1000)
@given(KEYS, st.lists(st.sampled_from(AUGMENTATIONS)))
def test_the_same_key_gives_the_same_pixels(key: tuple[int, int, int], names: list[str]) -> None:
    changed = augment(noise(), names, *key)
    assert same(changed, augment(noise(), sorted(set(names)), *key))
    assert changed.mode == "RGB"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_seed_epoch_and_index_determine_the_change(name: str) -> None:
    keys = [(seed, epoch, index) for seed in range(2) for epoch in range(3) for index in range(3)]
    different = {augment(noise(310, 230), [name], *key).tobytes() for key in keys}
    assert len(different) == (2 if name == "flip" else len(keys))


def test_flip_mirrors_half_of_the_images() -> None:
    results = [augment(noise(), ["flip"], 0, epoch, 5) for epoch in range(400)]
    mirrored = [same(result, ImageOps.mirror(noise())) for result in results]
    assert all(same(result, noise()) for result, flag in zip(results, mirrored, strict=True) if not flag)
    assert 160 <= sum(mirrored) <= 240


@examples(30, 2000)
@given(KEYS, st.integers(1, 300), st.integers(1, 300))
def test_a_crop_is_a_large_part(key: tuple[int, int, int], width: int, height: int) -> None:
    pixels = np.arange(width * height, dtype=np.uint32).reshape(height, width)
    rgb = np.stack([pixels >> 16, pixels >> 8, pixels], axis=-1).astype(np.uint8)
    cropped = np.asarray(augment(Image.fromarray(rgb), ["crop"], *key)).astype(int)
    numbers = cropped @ [65536, 256, 1]
    top, left = divmod(int(numbers[0, 0]), width)
    rows, columns = numbers.shape
    np.testing.assert_array_equal(numbers, pixels[top : top + rows, left : left + columns])
    assert rows * columns >= 0.7 * width * height
    # whole pixels: a side may be one longer than its share
    assert (columns - 1) / width <= 4 / 3 * rows / height
    assert (rows - 1) / height <= 4 / 3 * columns / width


def test_crops_have_every_size_and_shape() -> None:
    sizes = [augment(noise(100, 100), ["crop"], 0, epoch, 0).size for epoch in range(500)]
    areas = [width * height / 10_000 for width, height in sizes]
    ratios = [width / height for width, height in sizes]
    assert min(areas) < 0.72 < 0.98 < max(areas)
    assert min(ratios) < 0.8 < 1.25 < max(ratios)
    assert abs(np.mean(np.log(ratios))) < 0.02  # wide as often as high


def test_colour_changes_are_mild() -> None:
    def pixels(colour: tuple[int, int, int]) -> list[tuple[int, ...]]:
        image = Image.new("RGB", (8, 8), colour)
        return [augment(image, ["color"], 0, epoch, 0).getpixel((0, 0)) for epoch in range(300)]

    levels = [red for red, _, _ in pixels((120, 120, 120))]
    assert 95 <= min(levels) < 100 < 140 < max(levels) <= 145
    saturations = [red - green for red, green, _ in pixels((200, 60, 60))]
    assert min(saturations) < 120 < 160 < max(saturations)


def test_augmentations_have_independent_random_streams() -> None:
    for epoch in range(20):
        cropped = augment(noise(), ["crop"], 0, epoch, 0)
        both = augment(noise(), ["flip", "crop"], 0, epoch, 0)
        flips = not same(augment(noise(), ["flip"], 0, epoch, 0), noise())
        assert same(both, ImageOps.mirror(cropped) if flips else cropped)


def test_the_choice_of_captions_does_not_depend_on_augmentation(word_processor: WordProcessor) -> None:
    records = [CaptionedImage(str(i), CAPTIONS, make_scene(0, i).to_png()) for i in range(2)]
    plain = CaptionDataset(records, PixelInputs(word_processor.image_processor), word_processor, 2, 6, 3)
    keys = [SampleKey(epoch, index, False) for epoch in range(2) for index in range(2)]
    inputs = PixelInputs(word_processor.image_processor, AUGMENTATIONS, 3)
    augmented = CaptionDataset(records, inputs, word_processor, 2, 6, 3)
    for key in keys:
        assert augmented[key]["captions"] == plain[key]["captions"]
        assert not augmented[key]["image"].equal(plain[key]["image"])


def test_the_image_is_augmented_before_the_processor(word_processor: WordProcessor) -> None:
    scene = make_scene(0, 1)
    inputs = PixelInputs(word_processor.image_processor, ["crop", "color"], 3)
    image = augment(scene.load(), ["crop", "color"], 3, 2, 0)
    expected = word_processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    assert inputs.read(CaptionedImage("a", CAPTIONS, scene.to_png()), 2, 0).equal(expected)
