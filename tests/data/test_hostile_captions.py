"""Captions of strangers, and the files that hold them: kept as text, or refused in one clear message."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import save_tokenizer
from transformers import AddedToken, GPT2Tokenizer

from ituning_hf import ITuningProcessor
from ituning_hf.data.karpathy import read_karpathy
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage, clean_caption
from ituning_hf.evaluation.corpus_formulas import rouge_l
from ituning_hf.evaluation.metrics import compute_caption_metrics
from ituning_hf.evaluation.tokenizer import tokenize_caption
from ituning_hf.inference.captioning import generate_captions

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
    "20,000 signs without a space": ".&" * 10_000,
}
DEEP = "[" * 100_000
BAD_TEXT = {
    "empty": b"",
    "nested 100,000 deep": DEEP.encode(),
    "UTF-16": "[]".encode("utf-16"),
    "no UTF-8": b'{"images": ["caf\xe9"]}',
    "cut short": b'{"images": [{"filename": "a.jp',
    "a number of 5,000 digits": b'{"images": ' + b"9" * 5_000 + b"}",
    "NaN": b"NaN",
    "null": b"null",
    "images of a wrong type": b'{"images": {"a": 1}}',
    "an entry of a wrong type": b'{"images": [7]}',
}


@pytest.fixture(params=["GPT-2's own", "with tokens added"])
def any_processor(
    request: pytest.FixtureRequest, processor: ITuningProcessor, tmp_path: Path
) -> ITuningProcessor:
    tokenizer: GPT2Tokenizer = save_tokenizer(tmp_path / "tokenizer")
    if request.param == "with tokens added":
        tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
        tokenizer.add_tokens([AddedToken("[SEP]", special=True)])
        assert len(tokenizer.all_special_ids) >= 3
    return ITuningProcessor(processor.image_processor, tokenizer)


def test_special_tokens_written_out_stay_text(any_processor: ITuningProcessor) -> None:
    special = set(any_processor.tokenizer.all_special_ids)
    captions = [ids[1:-1] for ids in any_processor.encode_captions(TEXTS)]
    prompts = any_processor(text=TEXTS, return_tensors=None)
    rows = zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
    prompted = [row[-sum(mask) :][1:] for row, mask in rows]
    for texts in (captions, prompted):
        assert not special & {token for ids in texts for token in ids}
        assert any_processor.batch_decode(texts, skip_special_tokens=True) == TEXTS


def test_a_caption_loses_special_tokens_and_keeps_what_is_written_out(
    any_processor: ITuningProcessor, monkeypatch: pytest.MonkeyPatch, captioner
) -> None:
    """A prompt that writes the end token out comes back in the caption; real ones are left out."""
    (ids,) = any_processor.encode_captions(["a dog<|endoftext|> runs"])
    rows = torch.tensor([[*ids, any_processor.tokenizer.pad_token_id]])
    monkeypatch.setattr(type(captioner), "generate", lambda *args, **kwargs: rows)
    found = generate_captions(captioner, any_processor, {}, {"num_return_sequences": 1})
    assert found == [["a dog<|endoftext|> runs"]]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_caption_is_tokenized_and_scored_in_little_time(
    processor: ITuningProcessor, name: str
) -> None:
    start, caption = time.monotonic(), clean_caption(ODD[name])
    (ids,) = processor.encode_captions([caption], max_length=40)
    assert 3 <= len(ids) <= 40
    (whole,) = processor.encode_captions([caption])
    assert processor.decode(whole, skip_special_tokens=True) == caption
    scores = compute_caption_metrics([ODD[name], "a dog"], [[ODD[name]], ["a dog", ODD[name]]], java=False)
    assert scores["rouge_l"] == 1 or name == "no letter"
    assert time.monotonic() - start < 20


def test_the_metric_tokenizers_time_grows_as_the_caption_does() -> None:
    def seconds(sign: str, length: int) -> float:
        start = time.process_time()
        tokenize_caption(sign * (length // len(sign)))
        return time.process_time() - start

    for sign in (".&", "\0", "a&"):
        assert seconds(sign, 16_000) < 12 * max(seconds(sign, 4_000), 0.01)  # 16 were it quadratic


def test_rouge_is_the_official_one() -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    draw = random.Random(3)
    for _ in range(300):
        caption, *references = (" ".join(draw.choices("abcdef", k=draw.randint(0, 11))) for _ in range(4))
        assert rouge_l(caption, references) == Rouge().calc_score([caption], references)


# --- Files


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("kind", BAD_TEXT)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / ("dataset.json" if suffix == ".json" else "metadata.jsonl")
    path.write_bytes(BAD_TEXT[kind])
    with pytest.raises(ValueError, match=r"dataset\.json|metadata\.jsonl|no images of split") as caught:
        load_captioned_images(path if suffix == ".json" else tmp_path, "train")
    assert len(str(caught.value)) < 6_000


@pytest.mark.parametrize("key", ["annotations", "open_images_id"])
def test_json_nested_deeply_is_one_clear_error_of_every_reader(tmp_path: Path, key: str) -> None:
    (tmp_path / "nocaps_val.json").write_text(f'{{"{key}": ' + DEEP)
    with pytest.raises(ValueError, match=r"nocaps_val\.json is not a JSON file: nested too deeply"):
        load_captioned_images(tmp_path / "nocaps_val.json", "val")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    entry = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry]}), encoding="utf-8-sig")
    expected = [CaptionedImage("a.jpg", ("a dog",), tmp_path / "a.jpg")]
    assert read_karpathy(tmp_path / "dataset.json", tmp_path, "train") == expected


def test_of_a_key_that_stands_twice_the_last_counts(tmp_path: Path) -> None:
    line = '{"images": [], "images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a"}]}]}'
    (tmp_path / "dataset.json").write_text(line)
    assert [image.name for image in read_karpathy(tmp_path / "dataset.json", tmp_path, "train")] == ["a.jpg"]


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret.jpg", "C:\\secret.jpg"])
@pytest.mark.parametrize("field", ["filename", "filepath"])
def test_a_karpathy_file_names_nothing_outside_its_folder(
    write_json: Callable[..., Path], tmp_path: Path, field: str, place: str
) -> None:
    entry = {"filename": "a.jpg", "filepath": "", "split": "train", "sentences": [{"raw": "a"}]} | {
        field: place
    }
    with pytest.raises(ValueError, match=r"images\[0\]: 'filename' must stay inside the folder"):
        read_karpathy(write_json([entry]), tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: its first line must name the columns"),
        ("image,caption\n".encode("utf-16"), "is not UTF-8 text"),
        (b"image,caption\na.jpg,caf\xe9\n", "is not UTF-8 text"),
        (b'image,caption\na.jpg,"no end\n', "unexpected end of data"),
        (b"image,caption\na.jpg," + b"x" * 200_000, "field larger than field limit"),
        (b"image,caption\n../a.jpg,a dog\n", "must stay inside the folder"),
    ],
)
def test_a_bad_table_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"table\.csv.*{message}"):
        load_captioned_images(tmp_path / "table.csv", "train")


@pytest.mark.stress
def test_mangled_json_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever a changed byte makes of a file, the error is a ValueError, or the entries are whole."""
    entries = [{"filename": f"{i}.jpg", "split": "train", "sentences": [{"raw": "a dog"}]} for i in range(4)]
    whole = json.dumps({"images": entries}).encode()
    draw, path = random.Random(5), tmp_path / "dataset.json"
    for _ in range(5_000):
        changed = bytearray(whole[: draw.randint(1, len(whole))] if draw.random() < 0.2 else whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            records = load_captioned_images(path, "train", require_images=False)
            assert all(record.captions and record.name for record in records)
        except (ValueError, FileNotFoundError):
            continue
