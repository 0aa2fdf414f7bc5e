"""The processor: any text is decoded to itself, and nothing in it is a special token."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from properties import examples
from small_models import SHARED_DATA
from transformers import GPT2Tokenizer

from ituning_hf import ITuningProcessor

SPECIAL = "<|endoftext|>"
STRANGE = [SPECIAL, SPECIAL[:-1], " ", "  ", "\n", "a dog", " .", "n't", "\x00", "\ufeff", "🙂"]
PIECES = st.lists(st.sampled_from(STRANGE), max_size=6).map("".join)
TEXTS = st.text(st.characters(codec=None), max_size=30) | PIECES
CAPTIONS = TEXTS.filter(str.strip)


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
