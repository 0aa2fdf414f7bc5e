"""Image-major batches of any images and captions, against batches written cell by cell."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples

from ituning_hf.data.dataset import CaptionDataset, Collator
from ituning_hf.data.images import UnreadableImageError
from ituning_hf.data.inputs import FeatureInputs
from ituning_hf.data.records import CaptionedImage
from ituning_hf.data.rows import Row, join_rows, parse_file_name
from ituning_hf.data.sampler import SampleKey
from ituning_hf.training.batches import SkippedImages
from ituning_hf.training.errors import TooManyUnreadableError

from .conftest import BEGIN, END, PAD, WordProcessor

PROCESSOR = WordProcessor()
CAPTIONS = st.lists(st.text("ab ", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=5)


class Numbered:
    """Features that tell which image they are of, those of some of which cannot be read."""

    def __init__(self, broken: Iterable[str]) -> None:
        self.broken = set(broken)

    def read(self, name: str) -> torch.Tensor:
        if name in self.broken:
            raise UnreadableImageError(f"cannot read {name}")
        return torch.full((2, 3), 1.0 + int(name))

    def blank(self) -> torch.Tensor:
        return torch.zeros(2, 3)


def words(caption: str, limit: int) -> list[int]:
    return [BEGIN, *[10 + len(word) for word in caption.split()][: limit - 2], END]


@given(
    captions=st.lists(CAPTIONS, min_size=1, max_size=6),
    keys=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
    broken=st.sets(st.integers(0, 5)),
    k=st.integers(1, 4),
    limit=st.integers(3, 6),
)
@example(captions=[["a"]], keys=[(0, 0, True)], broken=set(), k=2, limit=3)
@examples(100, 5000)
def test_a_batch_holds_each_image_with_k_rows_and_labels_at_its_own_captions_alone(
    captions: list[list[str]], keys: list[tuple[int, int, bool]], broken: set[int], k: int, limit: int
) -> None:
    records = [CaptionedImage(str(i), tuple(texts), Path("nowhere")) for i, texts in enumerate(captions)]
    inputs = FeatureInputs(Numbered(map(str, broken)))
    dataset = CaptionDataset(records, inputs, PROCESSOR, k, limit, seed=3)
    asked = [SampleKey(epoch, index % len(records), padding) for epoch, index, padding in keys]
    batch = Collator(inputs, PROCESSOR, k)([dataset[key] for key in asked])

    length = batch["input_ids"].shape[1]
    longest = 2
    for image, key in enumerate(asked):
        counts = not key.padding and key.index not in broken
        assert batch["visual_features"][image].unique().tolist() == [1.0 + key.index if counts else 0.0]
        rows = range(image * k, (image + 1) * k)
        found = []
        for row in rows:
            labels = batch["labels"][row].tolist()
            text = [label for label in labels if label != -100]
            if text:
                found.append(text)
                longest = max(longest, len(text))
            used = max(1, len(text))  # a row that only fills up has its begin token, unlabelled
            assert labels == text + [-100] * (length - len(text))
            assert batch["input_ids"][row].tolist() == (text or [BEGIN]) + [PAD] * (length - used)
            assert batch["attention_mask"][row].tolist() == [1] * used + [0] * (length - used)
        possible = [words(caption, limit) for caption in captions[key.index]] if counts else []
        assert len(found) == min(k, len(possible))
        for text in found:
            possible.remove(text)  # no caption is taken twice
        if counts and len(captions[key.index]) <= k:
            assert found == [words(caption, limit) for caption in captions[key.index]]
    assert (len(batch["labels"]), length) == (len(asked) * k, longest)
    named = [f"cannot read {key.index}" for key in asked if not key.padding and key.index in broken]
    assert batch["unreadable"] == named


@given(st.lists(st.tuples(st.sampled_from("abc"), CAPTIONS)))
@examples(100, 5000)
def test_joined_rows_keep_every_caption_in_its_order(given_rows: list[tuple[str, list[str]]]) -> None:
    joined = join_rows(
        (f"line {i}", Row(name, tuple(captions), Path(name))) for i, (name, captions) in enumerate(given_rows)
    )
    assert [row.name for row in joined] == list(dict.fromkeys(name for name, _ in given_rows))
    for row in joined:
        assert list(row.captions) == [
            c for name, captions in given_rows if name == row.name for c in captions
        ]


PARTS = st.sampled_from(["..", ".", "/", "\\", "a", "b.jpg", "C:", "~", "...", " ", "\0"])


@given(st.lists(PARTS, max_size=7).map("".join) | st.text(max_size=9))
@example("./\\a.jpg")
@example("./C:\\a.jpg")
@examples(200, 10_000)
def test_no_name_of_a_file_leads_out_of_its_folder(name: str) -> None:
    try:
        parsed = parse_file_name(name, "line 1", "image")
    except ValueError as error:
        assert str(error).startswith("line 1: 'image' ")  # noqa: PT017
        return
    assert not PurePosixPath(parsed).is_absolute()
    assert not PureWindowsPath(parsed).anchor
    assert ".." not in parsed.replace("\\", "/").split("/")
    assert parse_file_name(parsed, "line 1", "image") == parsed


@given(st.integers(1, 1000), st.data())
@example(100, 0.29)
@examples(200, 10_000)
def test_as_many_images_as_the_share_says_may_be_unreadable(count: int, data: Any) -> None:
    # As people write it, with up to three decimals.
    share = data if isinstance(data, float) else data.draw(st.integers(0, 999)) / 1000
    allowed = min(round(share * 1000) * count // 1000, count - 1)
    skipped = SkippedImages(share, Accelerator(cpu=True))
    skipped.name(["cannot read a", "cannot read a"])
    skipped.limit(allowed, [None] * count)
    with pytest.raises(TooManyUnreadableError, match=r"of \d+ images could not be read|none of the"):
        skipped.limit(allowed + 1, [None] * count)
