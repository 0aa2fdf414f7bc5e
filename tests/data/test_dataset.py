"""Image-major batches from images or stored features, compared with hand-written batches."""

import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples
from torch.utils.data import DataLoader

from ituning_hf.data.columns import CaptionedImage, CaptionedImages
from ituning_hf.data.dataset import CaptionDataset, Collator, over_long_share
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.inputs import FeatureInputs, PixelInputs
from ituning_hf.data.sampler import ImageBatchSampler, SampleKey
from ituning_hf.data.scenes import read_scenes

from .conftest import BEGIN, END, PAD, WordProcessor, save_image

PROCESSOR = WordProcessor()
# One-word captions of different lengths.
CAPTIONS = tuple("w" * length for length in range(1, 8))


def new_dataset(records: list[CaptionedImage], k: int = 3, seed: int = 0, limit: int = 6) -> CaptionDataset:
    return CaptionDataset(records, PixelInputs(PROCESSOR.image_processor), PROCESSOR, k, limit, seed)


@pytest.fixture
def record(tmp_path: Path) -> CaptionedImage:
    return CaptionedImage("a.png", CAPTIONS, save_image(tmp_path / "a.png"))


@pytest.fixture
def broken(tmp_path: Path) -> CaptionedImage:
    (tmp_path / "broken.png").touch()
    return CaptionedImage("broken.png", ("a", "b"), tmp_path / "broken.png")


def test_an_item_holds_pixels_and_token_ids(record: CaptionedImage) -> None:
    few = CaptionedImage("few", ("a dog", "one two three four five six"), record.source)
    dataset = new_dataset([record, few])
    item = dataset[SampleKey(0, 1, False)]
    # the second caption is truncated to 6 tokens and keeps EOS
    assert item["captions"] == [[BEGIN, 11, 13, END], [BEGIN, 13, 13, 15, 14, END]]
    assert (item["index"], item["unreadable"], len(dataset)) == (1, None, 2)
    expected = PROCESSOR.image_processor(images=[few.load()], return_tensors="pt")["pixel_values"]
    assert item["image"].equal(expected[0])
    assert item["image"].shape == (3, 30, 30)


def chosen(dataset: CaptionDataset, epoch: int, index: int = 0) -> list[int]:
    """The positions of the chosen captions."""
    return [ids[1] - 11 for ids in dataset[SampleKey(epoch, index, False)]["captions"]]


def test_captions_are_chosen_by_seed_epoch_and_index(record: CaptionedImage) -> None:
    dataset = new_dataset([record] * 3, seed=4)
    for epoch in range(5):
        for index in range(3):
            rng = np.random.default_rng([4, epoch, index])
            assert chosen(dataset, epoch, index) == rng.choice(7, size=3, replace=False).tolist()
    other_seed = new_dataset([record], seed=5)
    assert [chosen(other_seed, epoch) for epoch in range(3)] != [chosen(dataset, epoch) for epoch in range(3)]


def random_states() -> list[object]:
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return [random.getstate(), numpy_state, torch.get_rng_state().tolist()]


def test_no_global_random_state_is_read_or_changed(record: CaptionedImage) -> None:
    dataset = new_dataset([record])
    first = chosen(dataset, epoch=1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random_states()
    assert chosen(dataset, epoch=1) == first
    assert random_states() == before


def test_a_batch_is_image_major(record: CaptionedImage, broken: CaptionedImage) -> None:
    two = CaptionedImage("two", ("a dog runs", "dogs"), record.source)
    dataset = new_dataset([broken, two, record], k=2)
    items = [dataset[SampleKey(0, 1, False)], dataset[SampleKey(0, 0, False)], dataset[SampleKey(0, 2, True)]]
    batch = Collator(dataset.inputs, PROCESSOR)(items)
    only_begin = [BEGIN, PAD, PAD, PAD, PAD]
    assert batch["input_ids"].tolist() == [
        [BEGIN, 11, 13, 14, END],
        [BEGIN, 14, END, PAD, PAD],
        *[only_begin] * 4,
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], *[[1, 0, 0, 0, 0]] * 4]
    assert batch["labels"].tolist() == [
        [BEGIN, 11, 13, 14, END],
        [BEGIN, 14, END, -100, -100],
        *[[-100] * 5] * 4,
    ]
    assert batch["pixel_values"][0].equal(items[0]["image"])
    assert batch["pixel_values"].shape == (3, 3, 30, 30)
    assert not batch["pixel_values"][1:].any()
    (reason,) = batch["unreadable"]
    assert reason.startswith(f"cannot read {broken.source}: the file is empty")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels", "unreadable"}


class NumberedFeatures:
    """Features whose values are 1 + the image's number; some images are unreadable."""

    def __init__(self, broken: Iterable[str]) -> None:
        self.broken = set(broken)

    def read(self, name: str) -> torch.Tensor:
        if name in self.broken:
            raise UnreadableImageError(f"cannot read {name}")
        return torch.full((2, 3), 1.0 + int(name), dtype=torch.bfloat16)

    def blank(self) -> torch.Tensor:
        return torch.zeros(2, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize("source", ["pixels", "features"])
def test_worker_processes_give_the_same_batches(source: str) -> None:
    records = read_scenes("train", 10)
    inputs = PixelInputs(PROCESSOR.image_processor)
    if source == "features":
        inputs = FeatureInputs(NumberedFeatures(["3"]))
        records = [CaptionedImage(str(i), record.captions, Path("none")) for i, record in enumerate(records)]

    def batches(workers: int) -> list[dict]:
        dataset = CaptionDataset(records, inputs, PROCESSOR, 2, 9, seed=0)
        loader = DataLoader(
            dataset,
            batch_sampler=ImageBatchSampler(10, 4, 1, 1, 0, seed=3),
            collate_fn=Collator(inputs, PROCESSOR),
            num_workers=workers,
        )
        return list(islice(loader, 5))

    alone = batches(0)
    for ours, theirs in zip(alone, batches(2), strict=True):
        assert ours["unreadable"] == theirs["unreadable"]
        tensors = {name: value for name, value in ours.items() if name != "unreadable"}
        assert all(value.equal(theirs[name]) for name, value in tensors.items())
    assert alone[2]["labels"].eq(-100).all(dim=1).tolist()[4:] == [True] * 4  # padding


TEXTS = st.lists(st.text("ab ", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=5)


def words(caption: str, limit: int) -> list[int]:
    return [BEGIN, *[10 + len(word) for word in caption.split()][: limit - 2], END]


@given(
    captions=st.lists(TEXTS, min_size=1, max_size=6),
    keys=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
    broken=st.sets(st.integers(0, 5)),
    k=st.integers(1, 4),
    limit=st.integers(3, 6),
)
@example(captions=[["a"]], keys=[(0, 0, True)], broken=set(), k=2, limit=3)
@examples(30, 5000)
def test_a_batch_has_equally_many_rows_for_each_image_and_labels_only_at_its_captions(
    captions: list[list[str]], keys: list[tuple[int, int, bool]], broken: set[int], k: int, limit: int
) -> None:
    records = [CaptionedImage(str(i), tuple(texts), Path("none")) for i, texts in enumerate(captions)]
    inputs = FeatureInputs(NumberedFeatures(map(str, broken)))
    dataset = CaptionDataset(records, inputs, PROCESSOR, k, limit, seed=3)
    asked = [SampleKey(epoch, index % len(records), padding) for epoch, index, padding in keys]
    batch = Collator(inputs, PROCESSOR)([dataset[key] for key in asked])
    rows = len(batch["labels"]) // len(asked)

    assert batch["visual_features"].dtype == torch.bfloat16
    length = batch["input_ids"].shape[1]
    longest, most = 2, 1
    for image, key in enumerate(asked):
        counts = not key.padding and key.index not in broken
        assert batch["visual_features"][image].unique().tolist() == [1.0 + key.index if counts else 0.0]
        found = []
        for row in range(image * rows, (image + 1) * rows):
            labels = batch["labels"][row].tolist()
            text = [label for label in labels if label != -100]
            if text:
                found.append(text)
                longest = max(longest, len(text))
            used = max(1, len(text))  # a row without a caption has a BOS token and no label
            assert labels == text + [-100] * (length - len(text))
            assert batch["input_ids"][row].tolist() == (text or [BEGIN]) + [PAD] * (length - used)
            assert batch["attention_mask"][row].tolist() == [1] * used + [0] * (length - used)
        possible = [words(caption, limit) for caption in captions[key.index]] if counts else []
        assert len(found) == min(k, len(possible))
        most = max(most, len(found))
        for text in found:
            possible.remove(text)  # no caption is used twice
        if counts and len(captions[key.index]) <= k:
            assert found == [words(caption, limit) for caption in captions[key.index]]
    assert (len(batch["labels"]), length) == (len(asked) * most, longest)
    named = [f"cannot read {key.index}" for key in asked if not key.padding and key.index in broken]
    assert batch["unreadable"] == named


def test_the_share_of_captions_that_would_be_truncated() -> None:
    captions = [("one", "one two"), ("one two three", "one two three four"), ("a b c d e f g",) * 4]
    images = CaptionedImages.from_images(
        CaptionedImage(str(i), texts, Path(str(i))) for i, texts in enumerate(captions)
    )
    # BOS and EOS count: five tokens are three words
    assert over_long_share(images, PROCESSOR, max_caption_tokens=5) == 5 / 8
    assert over_long_share(images, PROCESSOR, max_caption_tokens=9) == 0
    sampled = [images[i] for i in (0, 1)]  # of three images, 0 and 1 are taken
    longer = sum(len(text.split()) > 3 for image in sampled for text in image.captions)
    assert over_long_share(images, PROCESSOR, max_caption_tokens=5, sample_size=2) == longer / 4
