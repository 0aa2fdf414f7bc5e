"""Untrusted captions and caption files: kept as plain text, or refused with one clear message."""

from pathlib import Path

import pytest
from small_tokenizers import save_tokenizer_of
from transformers import AddedToken, GPT2Tokenizer

from ituning_hf import ITuningProcessor
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import clean_caption
from ituning_hf.evaluation.metrics import compute_caption_metrics
from ituning_hf.utils.errors import UserError

from .conftest import captions

SPECIAL = ["<|endoftext|>", "<pad>", "<image>", "[SEP]"]
TEXTS = [f"a{token} dog {token}" for token in SPECIAL] + ["".join(SPECIAL), "<|endoftext|"]
ODD = {
    "nul and control characters": "a \x00 dog\x07 \x1b[31m red\x7f",
    "right to left": "שני כלבים רצים",
    "an override of the direction": "\u202ea dog\u202c",
    "emoji with joiners": "👩‍👩‍👧‍👦 and 🐕‍🦺 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "line breaks": "a dog\r\nruns\u2028on\x85grass",
    "half a surrogate pair": "a dog \ud83d runs",
    "no letter": "\ufeff\u200b?!",
    "ten thousand words": "a dog runs " * 3_334,
    "100,000 letters without a space": "dog" * 33_334,
}
BAD_TEXT = {
    "empty": b"",
    "nested 100,000 deep": b"[" * 100_000,
    "UTF-16": "[]".encode("utf-16"),
    "not UTF-8": b'{"images": ["caf\xe9"]}',
    "truncated": b'{"images": [{"filename": "a.jp',
    "a number of 5,000 digits": b'{"images": ' + b"9" * 5_000 + b"}",
    "NaN": b"NaN",
}


@pytest.fixture(params=["GPT-2's own", "with added tokens"])
def any_processor(
    request: pytest.FixtureRequest, processor: ITuningProcessor, tmp_path: Path
) -> ITuningProcessor:
    tokenizer: GPT2Tokenizer = save_tokenizer_of("gpt2", tmp_path / "tokenizer")
    if request.param == "with added tokens":
        tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
        tokenizer.add_tokens([AddedToken("[SEP]", special=True)])
        assert len(tokenizer.all_special_ids) >= 3
    return ITuningProcessor(processor.image_processor, tokenizer)


def test_special_tokens_in_a_caption_or_prompt_stay_text(any_processor: ITuningProcessor) -> None:
    special = set(any_processor.tokenizer.all_special_ids)
    tokenized = [ids[1:-1] for ids in any_processor.encode_captions(TEXTS)]
    prompts = any_processor(text=TEXTS, return_tensors=None)
    rows = zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
    prompted = [row[-sum(mask) :][1:] for row, mask in rows]
    for texts in (tokenized, prompted):
        assert not special & {token for ids in texts for token in ids}
        assert any_processor.batch_decode(texts, skip_special_tokens=True) == TEXTS


@pytest.mark.parametrize("name", ODD)
def test_an_odd_caption_is_tokenized_and_scored(processor: ITuningProcessor, name: str) -> None:
    caption = clean_caption(ODD[name])
    (ids,) = processor.encode_captions([caption], max_length=40)
    assert 3 <= len(ids) <= 40
    (whole,) = processor.encode_captions([caption])
    assert processor.decode(whole, skip_special_tokens=True) == caption
    scores = compute_caption_metrics([ODD[name], "a dog"], [["a dog"], ["a dog", ODD[name]]], java=False)
    assert 0.5 <= scores["rouge_l"] <= 1


@pytest.mark.parametrize("name", ["dataset.json", "metadata.jsonl", "table.csv"])
@pytest.mark.parametrize("kind", BAD_TEXT)
def test_a_bad_file_raises_one_clear_error(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_TEXT[kind])
    with pytest.raises(UserError, match=f"{name}|has no images$"):
        load_captioned_images(tmp_path if name == "metadata.jsonl" else tmp_path / name, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", "is empty: its first line must contain the column names"),
        (b"image,caption\n", "has no images$"),
        (b"\nimage,words\na.jpg,a dog", "line 2: there is no column named caption"),
        ("image,caption".encode("utf-16"), "not UTF-8 text, it seems to be UTF-16: save it as UTF-8"),
        (b"image,caption\na.jpg,caf\xe9", "not UTF-8 text, it seems to be Windows-1252 or Latin-1: save it"),
    ],
)
def test_a_bad_table_raises_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"table\.csv.*{message}"):
        captions(tmp_path / "table.csv")


def test_json_with_a_byte_order_mark_and_a_repeated_key_is_read(tmp_path: Path) -> None:
    line = '{"images": [], "images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a"}]}]}'
    (tmp_path / "dataset.json").write_text(line, encoding="utf-8-sig")
    assert captions(tmp_path / "dataset.json") == {"a.jpg": ("a",)}
