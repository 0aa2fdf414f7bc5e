"""The processor: any text comes back as it was, nothing in it is special, and any image becomes pixels."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from properties import examples
from small_models import IMAGE_SIZE, SHARED_DATA
from transformers import GPT2Tokenizer

from ituning_hf import ITuningProcessor
from ituning_hf.captioner.processing_ituning import caption_rows

SPECIAL = "<|endoftext|>"
STRANGE = [SPECIAL, SPECIAL[:-1], " ", "  ", "\n", "a dog", " .", "n't", "\x00", "\ufeff", "🙂"]
PIECES = st.lists(st.sampled_from(STRANGE), max_size=6).map("".join)
TEXTS = st.text(st.characters(codec=None), max_size=30) | PIECES
CAPTIONS = TEXTS.filter(str.strip)
# All that Pillow makes RGB, but for what it reads of no file.
MODES = [
    *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"),
    *("I", "F", "I;16", "I;16L", "I;16B"),
]


@pytest.fixture(scope="module", params=["small", "gpt2"])
def any_processor(request: pytest.FixtureRequest, processor: ITuningProcessor) -> ITuningProcessor:
    """With the small tokenizer, and with GPT-2's own."""
    if request.param == "small":
        return processor
    folder = SHARED_DATA / "gpt2-tokenizer"
    if not folder.exists():
        pytest.skip(f"GPT-2's real tokenizer is not at {folder}")
    return ITuningProcessor(processor.image_processor, GPT2Tokenizer.from_pretrained(folder))


def as_read(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair."""
    return "".join("?" if "\ud800" <= character <= "\udfff" else character for character in text)


@given(captions=st.lists(CAPTIONS, min_size=1, max_size=4), limit=st.none() | st.integers(3, 12))
@example(captions=["\ud800 dog"], limit=None)
@example(captions=[f" {SPECIAL}\t"], limit=3)
@examples(25, 2000)
def test_any_caption_comes_back_between_begin_and_end(
    any_processor: ITuningProcessor, captions: list[str], limit: int | None
):
    tokenizer = any_processor.tokenizer
    whole = any_processor.encode_captions(captions)
    for caption, ids in zip(captions, whole, strict=True):
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
        assert any_processor.decode(ids, skip_special_tokens=True) == as_read(caption.strip())
        assert any_processor.encode_captions([caption]) == [ids]
    room = None if limit is None else limit - 2
    cut = any_processor.encode_captions(captions, limit)
    assert cut == [[ids[0], *ids[1:-1][:room], ids[-1]] for ids in whole]


def rows_by_hand(groups: list[list[list[int]]], k: int, begin: int, pad: int) -> dict[str, list[list[int]]]:
    """Write every cell of a batch of captions on its own."""
    width = max([2] + [len(ids) for group in groups for ids in group])
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for image in range(len(groups)):
        for place in range(k):
            ids = groups[image][place] if place < len(groups[image]) else None
            row = {name: [0] * width for name in batch}
            for t in range(width):
                row["input_ids"][t] = ids[t] if ids and t < len(ids) else begin if t == 0 else pad
                row["attention_mask"][t] = int(t == 0 or (ids is not None and t < len(ids)))
                row["labels"][t] = ids[t] if ids and t < len(ids) else -100
            for name, values in row.items():
                batch[name].append(values)
    return batch


@given(groups=st.lists(st.lists(CAPTIONS, max_size=3), min_size=1, max_size=4))
@examples(25, 1500)
def test_rows_of_any_captions_are_image_major_with_labels_at_their_tokens_alone(
    any_processor: ITuningProcessor, groups: list[list[str]]
):
    assume(any(groups))
    tokenizer = any_processor.tokenizer
    batch = any_processor(captions=groups)
    encoded = [any_processor.encode_captions(group) for group in groups]
    expected = rows_by_hand(encoded, max(map(len, groups)), tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert {name: values.tolist() for name, values in batch.items()} == expected


IDS = st.lists(st.integers(3, 9), max_size=5).map(lambda ids: [1, *ids, 2])


@given(st.lists(st.lists(IDS, max_size=3), max_size=4), st.integers(0, 2))
@examples(50, 5000)
def test_rows_of_any_ids_for_any_number_of_captions(groups: list[list[list[int]]], more: int):
    k = max(map(len, groups), default=0) + more
    assert caption_rows(groups, 1, 0, k) == rows_by_hand(groups, k, 1, 0)


@given(prompts=st.lists(TEXTS, min_size=1, max_size=4))
@examples(25, 2000)
def test_any_prompt_comes_back_behind_the_begin_token(any_processor: ITuningProcessor, prompts: list[str]):
    tokenizer = any_processor.tokenizer
    batch = any_processor(text=prompts)
    for prompt, ids, mask in zip(prompts, batch["input_ids"], batch["attention_mask"], strict=True):
        start = len(mask) - int(mask.sum())
        assert mask.tolist() == [0] * start + [1] * (len(mask) - start)
        assert (ids[:start] == tokenizer.pad_token_id).all()
        assert ids[start] == tokenizer.bos_token_id
        own = ids[start + 1 :].tolist()
        assert not set(own) & set(tokenizer.all_special_ids)
        assert any_processor.decode(own) == as_read(prompt)
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


@st.composite
def pictures(draw: st.DrawFn) -> Image.Image:
    """Noise of any size and mode; of a mode that has no bytes of its own, one colour."""
    mode, seed = draw(st.sampled_from(MODES)), draw(st.integers(0, 99))
    size = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    if mode in ("I", "F"):
        values = np.random.default_rng(seed).normal(0, 10.0 ** draw(st.integers(-2, 9)), size[::-1])
        values = values.clip(-(2**31), 2**31 - 1) if mode == "I" else values
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    picture = Image.new(mode, size)
    picture.frombytes(np.random.default_rng(seed).bytes(len(picture.tobytes())))
    return picture


@given(images=st.lists(pictures(), min_size=1, max_size=3))
@examples(20, 1000)
def test_images_of_any_size_and_mode_become_pixels_each_on_its_own(
    processor: ITuningProcessor, images: list[Image.Image]
):
    pixels = processor(images=images)["pixel_values"]
    assert pixels.shape == (len(images), 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pixels.dtype == torch.float32
    # Of values from 0 to 1, by CLIP's means and deviations.
    assert ((pixels > -1.8) & (pixels < 2.2)).all()
    for image, expected in zip(images, pixels, strict=True):
        assert torch.equal(processor(images=image)["pixel_values"][0], expected)
