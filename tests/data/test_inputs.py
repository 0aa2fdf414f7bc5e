"""Features in the place of pictures: the same batches but for the images, and no picture opened."""

import multiprocessing
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from ituning_hf.data.dataset import CaptionDataset, Collator
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.inputs import FeatureInputs, ImageInputs, PixelInputs
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.sampler import ImageBatchSampler, SampleKey

from .conftest import BEGIN, PAD, WordProcessor, save_image

N, WIDTH = 5, 7
BROKEN = "3.png"


class KnownFeatures:
    """Features that tell which image they are of."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype

    def read(self, name: str) -> torch.Tensor:
        if name == BROKEN:
            raise UnreadableImageError(f"cannot read {name}: it was no picture")
        return torch.full((N, WIDTH), 1.0 + int(name.removesuffix(".png")), dtype=self.dtype)

    def blank(self) -> torch.Tensor:
        return torch.zeros(N, WIDTH, dtype=self.dtype)


@pytest.fixture
def records() -> list[CaptionedImage]:
    """Images whose pictures are nowhere, with one to four captions."""
    captions = ("a dog", "one two three four", "dogs", "a b")
    return [CaptionedImage(f"{i}.png", captions[: 1 + i % 4], Path("nowhere")) for i in range(11)]


def batches_of(
    records: list[CaptionedImage], inputs: ImageInputs, processor: WordProcessor, **options: object
) -> list[dict]:
    """One epoch and the beginning of the next one."""
    loader = DataLoader(
        CaptionDataset(records, inputs, processor, 3, 9, seed=2),
        batch_sampler=ImageBatchSampler(len(records), 4, 1, 1, 0, seed=3),
        collate_fn=Collator(inputs, processor, 3),
        **options,
    )
    return list(islice(loader, 5))


def naive_images(records: list[CaptionedImage], features: KnownFeatures) -> list[torch.Tensor]:
    """The same five batches' images, put together one by one."""
    batches = []
    for keys in islice(ImageBatchSampler(len(records), 4, 1, 1, 0, seed=3), 5):
        batch = torch.zeros(4, N, WIDTH, dtype=features.dtype)
        for row, key in enumerate(keys):
            if not key.padding and records[key.index].name != BROKEN:
                batch[row] = features.read(records[key.index].name)
        batches.append(batch)
    return batches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_are_batched_as_they_are(word_processor, records, dtype: torch.dtype):
    features = KnownFeatures(dtype)
    batches = batches_of(records, FeatureInputs(features), word_processor)
    for batch, expected in zip(batches, naive_images(records, features), strict=True):
        assert set(batch) == {
            "visual_features",
            "input_ids",
            "attention_mask",
            "labels",
            "unreadable",
        }
        assert batch["visual_features"].dtype is dtype
        assert torch.equal(batch["visual_features"], expected)


def test_all_but_the_images_is_as_from_pictures(word_processor, records, tmp_path: Path):
    """Also where one cannot be read, and where the epoch's last batch is filled up."""
    for record in records:
        save_image(tmp_path / record.name)
    (tmp_path / BROKEN).write_bytes(b"no picture")
    pictures = [CaptionedImage(r.name, r.captions, tmp_path / r.name) for r in records]
    of_pictures = batches_of(pictures, PixelInputs(word_processor.image_processor), word_processor)
    of_features = batches_of(records, FeatureInputs(KnownFeatures()), word_processor)
    for ours, theirs in zip(of_features, of_pictures, strict=True):
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(ours[name], theirs[name])
        blank = [not image.any() for image in ours["visual_features"]]
        assert blank == [not image.any() for image in theirs["pixel_values"]]
        assert len(ours["unreadable"]) == len(theirs["unreadable"])
    assert [text for batch in of_features for text in batch["unreadable"]] == [
        f"cannot read {BROKEN}: it was no picture"
    ]


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])  # spawned ones import everything
def test_worker_processes_give_the_same_batches(word_processor, records, start: str, workers: int):
    inputs = FeatureInputs(KnownFeatures())
    context = multiprocessing.get_context(start)
    options = {"num_workers": workers, "multiprocessing_context": context}
    by_workers = batches_of(records, inputs, word_processor, **options)
    for ours, theirs in zip(by_workers, batches_of(records, inputs, word_processor), strict=True):
        assert ours.pop("unreadable") == theirs.pop("unreadable")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_batch_without_any_image_keeps_its_shape_and_precision(word_processor, records):
    inputs = FeatureInputs(KnownFeatures())
    dataset = CaptionDataset(records, inputs, word_processor, 1, 9, seed=0)
    batch = Collator(inputs, word_processor, 1)([dataset[SampleKey(0, 3, False)]] * 2)
    assert torch.equal(batch["visual_features"], torch.zeros(2, N, WIDTH, dtype=torch.bfloat16))
    assert batch["input_ids"].tolist() == [[BEGIN, PAD]] * 2
    assert len(batch["unreadable"]) == 2


def test_pictures_need_not_be_there_for_a_data_set_to_be_read(write_json):
    entry = {"filepath": "val2014", "filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
    path = write_json([entry])
    with pytest.raises(FileNotFoundError, match="1 of the split's 1 images are missing"):
        load_captioned_images(path, "train")
    (record,) = load_captioned_images(path, "train", require_images=False)
    assert (record.name, record.captions) == ("val2014/a.jpg", ("a dog",))


def test_the_names_of_cocos_images_do_not_depend_on_where_their_pictures_are(tmp_path: Path):
    path = tmp_path / "captions_train2017.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "7.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}'
    )
    with pytest.raises(FileNotFoundError, match="no image found"):
        load_captioned_images(path, "train")
    without = load_captioned_images(path, "train", require_images=False)
    save_image(tmp_path / "train2017" / "7.jpg")
    assert [r.name for r in without] == [r.name for r in load_captioned_images(path, "train")] == ["7.jpg"]
