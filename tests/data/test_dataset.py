import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ituning_hf import ITuningProcessor
from ituning_hf.data.dataset import CaptionDataset, Collator, count_over_long
from ituning_hf.data.inputs import PixelInputs
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.sampler import ImageBatchSampler, SampleKey
from ituning_hf.data.scenes import read_scenes

from .conftest import BEGIN, END, PAD, WordProcessor, save_image

# Captions of one word each, told apart by its length.
CAPTIONS = tuple("w" * length for length in range(1, 8))


def new_dataset(
    processor: WordProcessor, records: list[CaptionedImage], k: int = 3, seed: int = 0, max_tokens: int = 6
) -> CaptionDataset:
    return CaptionDataset(records, PixelInputs(processor.image_processor), processor, k, max_tokens, seed)


def new_collator(processor: WordProcessor, k: int) -> Collator:
    return Collator(PixelInputs(processor.image_processor), processor, k)


@pytest.fixture
def record(tmp_path: Path) -> CaptionedImage:
    return CaptionedImage("a.png", CAPTIONS, save_image(tmp_path / "a.png"))


@pytest.fixture
def broken(tmp_path: Path) -> CaptionedImage:
    (tmp_path / "broken.png").touch()
    return CaptionedImage("broken.png", ("a", "b"), tmp_path / "broken.png")


def test_an_item_holds_pixels_and_token_ids(word_processor: WordProcessor, record: CaptionedImage) -> None:
    few = CaptionedImage("few", ("a dog", "one two three four five six"), record.source)
    dataset = new_dataset(word_processor, [record, few])
    item = dataset[SampleKey(0, 1, False)]
    # the second caption is cut to 6 tokens, its end kept
    assert item["captions"] == [[BEGIN, 11, 13, END], [BEGIN, 13, 13, 15, 14, END]]
    assert (item["index"], item["unreadable"], len(dataset)) == (1, None, 2)
    expected = word_processor.image_processor(images=[few.load()], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(item["image"], expected[0], rtol=0, atol=0)
    assert item["image"].shape == (3, 30, 30)


def chosen(dataset: CaptionDataset, epoch: int, index: int = 0) -> list[int]:
    """The positions of the captions taken."""
    return [ids[1] - 11 for ids in dataset[SampleKey(epoch, index, False)]["captions"]]


def test_captions_are_chosen_by_seed_epoch_and_index(
    word_processor: WordProcessor, record: CaptionedImage
) -> None:
    dataset = new_dataset(word_processor, [record] * 3, seed=4)
    choices = {(epoch, index): chosen(dataset, epoch, index) for epoch in range(20) for index in range(3)}
    for (epoch, index), positions in choices.items():
        rng = np.random.default_rng([4, epoch, index])
        assert positions == rng.choice(7, size=3, replace=False).tolist()
    assert {position for positions in choices.values() for position in positions} == set(range(7))
    other_seed = new_dataset(word_processor, [record], seed=5)
    assert [chosen(other_seed, epoch) for epoch in range(3)] != [chosen(dataset, epoch) for epoch in range(3)]


@pytest.mark.parametrize("k", [7, 8])
def test_all_captions_come_in_order_if_there_is_room(
    word_processor: WordProcessor, record: CaptionedImage, k: int
) -> None:
    dataset = new_dataset(word_processor, [record], k=k)
    assert [chosen(dataset, epoch) for epoch in range(3)] == [list(range(7))] * 3


def test_no_global_random_state_is_read_or_changed(
    word_processor: WordProcessor, record: CaptionedImage
) -> None:
    dataset = new_dataset(word_processor, [record])
    first = chosen(dataset, epoch=1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert chosen(dataset, epoch=1) == first
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before


def test_padding_is_neither_decoded_nor_captioned(
    word_processor: WordProcessor, broken: CaptionedImage
) -> None:
    item = new_dataset(word_processor, [broken])[SampleKey(2, 0, True)]
    assert item == {"index": 0, "image": None, "captions": [], "unreadable": None}


def test_an_unreadable_image_is_reported_not_raised(
    word_processor: WordProcessor, broken: CaptionedImage
) -> None:
    item = new_dataset(word_processor, [broken])[SampleKey(0, 0, False)]
    assert (item["image"], item["captions"]) == (None, [])
    assert item["unreadable"].startswith(f"cannot read {broken.source}: the file is empty")


@pytest.mark.parametrize(
    ("k", "max_tokens", "message"),
    [
        (0, 6, "captions_per_image must be at least 1, got 0"),
        (1, 2, r"max_caption_tokens must be at least 3 \(begin token, one token, end token\), got 2"),
    ],
)
def test_bad_arguments_are_refused(
    word_processor: WordProcessor, record: CaptionedImage, k: int, max_tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        new_dataset(word_processor, [record], k=k, max_tokens=max_tokens)


def test_a_batch_is_image_major(
    word_processor: WordProcessor, record: CaptionedImage, broken: CaptionedImage
) -> None:
    two = CaptionedImage("two", ("a dog runs", "dogs"), record.source)
    dataset = new_dataset(word_processor, [broken, two, record], k=2)
    items = [dataset[SampleKey(0, 1, False)], dataset[SampleKey(0, 0, False)], dataset[SampleKey(0, 2, True)]]
    batch = new_collator(word_processor, k=2)(items)
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
    torch.testing.assert_close(batch["pixel_values"][0], items[0]["image"], rtol=0, atol=0)
    assert batch["pixel_values"].shape == (3, 3, 30, 30)
    assert not batch["pixel_values"][1:].any()
    assert batch["unreadable"] == [items[1]["unreadable"]]
    assert {name for name, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "pixel_values",
        "input_ids",
        "attention_mask",
        "labels",
    }


def test_a_batch_without_any_image_keeps_its_shapes(
    word_processor: WordProcessor, broken: CaptionedImage
) -> None:
    items = [new_dataset(word_processor, [broken])[SampleKey(0, 0, False)]] * 2
    batch = new_collator(word_processor, k=3)(items)
    assert batch["pixel_values"].shape == (2, 3, 30, 30)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["input_ids"].tolist() == [[BEGIN, PAD]] * 6
    assert batch["labels"].tolist() == [[-100, -100]] * 6
    assert len(batch["unreadable"]) == 2


def test_worker_processes_give_the_same_batches(word_processor: WordProcessor) -> None:
    dataset = new_dataset(word_processor, read_scenes("train", 10), k=2, max_tokens=9)
    sampler = ImageBatchSampler(10, 4, 1, 1, 0, seed=3)
    batches = [
        list(
            islice(
                DataLoader(
                    dataset,
                    batch_sampler=sampler,
                    collate_fn=new_collator(word_processor, 2),
                    num_workers=workers,
                ),
                5,
            )
        )
        for workers in (0, 2)
    ]
    for alone, by_workers in zip(*batches, strict=True):
        torch.testing.assert_close(alone, by_workers, rtol=0, atol=0)
    assert batches[0][2]["labels"].eq(-100).all(dim=1).tolist() == [False] * 4 + [True] * 4


def test_counts_captions_that_would_be_cut(word_processor: WordProcessor) -> None:
    captions = [("one", "one two"), ("one two three", "one two three four"), ("a b c d e f g",)]
    records = [CaptionedImage(str(i), texts, Path(str(i))) for i, texts in enumerate(captions)]
    # begin and end token count: five tokens are three words
    assert count_over_long(records, word_processor, max_caption_tokens=5) == 2
    assert count_over_long(records, word_processor, max_caption_tokens=5, batch_size=2) == 2
    assert count_over_long(records, word_processor, max_caption_tokens=9) == 0


def test_tokenizes_in_batches(word_processor: WordProcessor) -> None:
    count_over_long([CaptionedImage("a", CAPTIONS, Path("a"))], word_processor, 5, batch_size=3)
    assert word_processor.largest_batch == 3


def test_works_with_the_real_processor(processor: ITuningProcessor, flickr8k_mini: Path) -> None:
    records = load_captioned_images(flickr8k_mini / "dataset_flickr8k_mini.json", "val")
    inputs = PixelInputs(processor.image_processor)
    dataset = CaptionDataset(records, inputs, processor, captions_per_image=6, max_caption_tokens=400, seed=0)
    batch = Collator(inputs, processor, 6)([dataset[SampleKey(0, index, False)] for index in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 30, 30)
    captions = [caption for record in records[:3] for caption in (*record.captions, "")]
    assert batch["input_ids"].shape[0] == len(captions) == 18
    for row, caption in zip(batch["labels"], captions, strict=True):
        assert processor.tokenizer.decode(row[row != -100], skip_special_tokens=True) == caption
    lengths = [len(ids) for record in records for ids in processor.encode_captions(record.captions)]
    limit = sorted(lengths)[len(lengths) // 2]
    assert count_over_long(records, processor, limit) == sum(length > limit for length in lengths) > 0
