"""The processor: exact ids, shapes, padding and pixels."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import IMAGE_SIZE, SHARED_DATA, edit_json, put_in_hub_cache
from transformers import AutoProcessor, CLIPImageProcessorPil, GPT2Tokenizer

from ituning_hf import ITuningProcessor
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.processing_ituning import caption_rows, crop_extreme_aspect, prepare_images

GPT2_TOKENIZER = SHARED_DATA / "gpt2-tokenizer"
# Token ids of the small tokenizer; its BOS, EOS and padding token is 0.
DOG = [65, 284, 71, 293]  # "a dog runs"
BIRDS = [299, 291, 297, 289]  # "two red birds sit"
MAN = [65, 287]  # "a man"


def images(number: int = 2) -> list[Image.Image]:
    """Photographs of several sizes."""
    generator = np.random.default_rng(0)
    sizes = [(41, 53, 3), (67, 32, 3), (30, 30, 3)]
    return [Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)) for size in sizes[:number]]


def lists(batch: dict[str, torch.Tensor]) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in batch.items() if name != "pixel_values"}


# --- Images


def test_images_without_text(processor):
    batch = processor(images=images(3))
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(processor(images=images(1)[0])["pixel_values"], batch["pixel_values"][:1])


def test_pixels_are_scaled_and_normalized_as_for_clip(processor):
    image = Image.new("RGB", (90, 45), (255, 128, 0))
    pixels = processor(images=image)["pixel_values"][0]
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = torch.tensor((np.array([255, 128, 0]) / 255 - mean) / std, dtype=torch.float32)
    torch.testing.assert_close(pixels, expected[:, None, None].expand_as(pixels))


def test_the_torchvision_image_processor_is_replaced_by_the_pil_one(processor):
    class CLIPImageProcessor:  # the name of Transformers' class that needs torchvision
        def to_dict(self) -> dict[str, Any]:
            return processor.image_processor.to_dict()

    other = ITuningProcessor(CLIPImageProcessor(), processor.tokenizer)
    assert type(other.image_processor) is CLIPImageProcessorPil
    found, expected = (p(images=images())["pixel_values"] for p in (other, processor))
    assert torch.equal(found, expected)


# --- Captions


def test_captions_get_bos_and_eos_and_are_padded_on_the_right(processor):
    batch = processor(captions=["a dog runs", "a man"])
    assert lists(batch) == {
        "input_ids": [[0, *DOG, 0], [0, *MAN, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]],
        "labels": [[0, *DOG, 0], [0, *MAN, 0, -100, -100]],
    }


def test_images_with_unequal_numbers_of_captions_get_rows_without_labels(processor):
    batch = processor(images=images(3), captions=[["a man"], ["a dog runs", "a man"], []])
    assert batch["pixel_values"].shape[0] == 3
    man, dog = [0, *MAN, 0, 0, 0], [0, *DOG, 0]
    mask, begin_only = [1] * 4 + [0] * 2, [1] + [0] * 5
    labels, none = [0, *MAN, 0, -100, -100], [-100] * 6
    assert lists(batch) == {
        "input_ids": [man, [0] * 6, dog, man, [0] * 6, [0] * 6],
        "attention_mask": [mask, begin_only, [1] * 6, mask, begin_only, begin_only],
        "labels": [labels, none, dog, labels, none, none],
    }


@pytest.mark.parametrize("captions", ["a man", ["a man"], [["a man"]], ("a man",), [("  a man\n",)]])
def test_one_caption_may_be_given_in_several_forms(processor, captions: Any):
    expected = [[0, *MAN, 0]]
    assert processor(images=images(1), captions=captions)["input_ids"].tolist() == expected
    assert processor(captions=captions)["labels"].tolist() == expected


def test_a_long_caption_is_truncated_and_keeps_eos(processor):
    batch = processor(captions=["a dog runs", "a man"], max_length=5)
    assert batch["input_ids"].tolist() == [[0, *DOG[:3], 0], [0, *MAN, 0, 0]]
    assert batch["labels"].tolist() == [[0, *DOG[:3], 0], [0, *MAN, 0, -100]]


def test_special_tokens_in_a_caption_are_plain_text(processor):
    encoded = processor.encode_captions(["a dog<|endoftext|> runs", "<|endoftext|>"])
    assert all(0 not in ids[1:-1] for ids in encoded)
    decoded = processor.batch_decode([ids[1:-1] for ids in encoded])
    assert decoded == ["a dog<|endoftext|> runs", "<|endoftext|>"]
    prompt = processor(text="<|endoftext|>")["input_ids"][0].tolist()
    assert prompt[0] == 0
    assert 0 not in prompt[1:]
    assert processor.encode_captions([]) == []


def test_the_number_of_rows_per_image_may_be_given():
    rows = caption_rows([[[7, 1, 2]], [[7, 3, 2]]], bos_token_id=7, pad_token_id=9, rows_per_image=2)
    assert rows["input_ids"] == [[7, 1, 2], [7, 9, 9], [7, 3, 2], [7, 9, 9]]
    assert rows["labels"] == [[7, 1, 2], [-100] * 3, [7, 3, 2], [-100] * 3]


# --- Prompts


def test_prompts_get_bos_and_are_padded_on_the_left(processor):
    batch = processor(images=images(), text=["a dog runs", "a man"])
    assert batch["pixel_values"].shape[0] == 2
    assert lists(batch) == {
        "input_ids": [[0, *DOG], [0, 0, 0, *MAN]],
        "attention_mask": [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
    }


def test_a_string_is_one_prompt_for_all_images_and_an_empty_one_is_bos(processor):
    assert lists(processor(text="a man")) == {"input_ids": [[0, *MAN]], "attention_mask": [[1, 1, 1]]}
    assert lists(processor(text="")) == {"input_ids": [[0]], "attention_mask": [[1]]}
    assert processor(images=images(), text="a man")["input_ids"].tolist() == [[0, *MAN]] * 2


# --- Tensors, errors


def test_lists_and_numpy_arrays_may_be_requested(processor):
    batch = processor(images=images(), captions=["a man", "a dog runs"], return_tensors=None)
    assert batch["input_ids"] == [[0, *MAN, 0, 0, 0], [0, *DOG, 0]]
    arrays = processor(images=images(), captions=["a man", "a dog runs"], return_tensors="np")
    assert isinstance(arrays["labels"], np.ndarray)
    assert arrays["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)


BAD_INPUT = [
    ({}, "Nothing to prepare: pass images, text"),
    ({"text": "a", "captions": "b"}, "Got both text .* and captions"),
    ({"captions": ""}, r"captions \[0\] are empty: remove them"),
    ({"captions": [["a", " \n"]]}, r"captions \[1\] are empty"),
    ({"captions": []}, "captions are all empty lists: pass at least one"),
    ({"captions": [[], []]}, "captions are all empty lists"),
    ({"captions": ["a", ["b"]]}, "captions mixes strings and lists"),
    ({"images": images(2), "captions": ["a"]}, "captions has 1 entries for 2 images"),
    ({"images": images(1), "captions": ["a", "b"]}, "captions has 2 entries for 1 images"),
    ({"captions": "a man", "max_length": 2}, "max_length is 2, expected 3 or more"),
    ({"text": "a dog", "max_length": 4}, "max_length=4 applies to captions, but no captions"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUT)
def test_invalid_inputs_are_refused(processor, inputs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_image_options_without_images_are_refused(processor):
    with pytest.raises(TypeError, match=r"\['truncatoin'\] apply to images, but no images were passed"):
        processor(text="a dog", truncatoin=3)


# --- Saving and loading


def test_a_loaded_processor_gives_equal_pixels_and_ids(processor, captioner, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "configuration_ituning.py",
        "encoders_ituning.py",
        "loss_ituning.py",
        "processing_ituning.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    captioner.save_pretrained(tmp_path)
    inputs = {"images": images(), "captions": [["a dog runs", "<|endoftext|> two"], ["a man"]]}
    expected = processor(**inputs)
    for loaded in (ITuningProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is ITuningProcessor
        assert type(loaded.image_processor) is CLIPImageProcessorPil
        assert type(loaded.tokenizer) is GPT2Tokenizer
        found = loaded(**inputs)
        assert lists(found) == lists(expected)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_image_processor_and_tokenizer_come_from_the_given_revisions(backbones, tmp_path: Path):
    for kind, file, change in (
        ("vision", "preprocessor_config.json", {"image_mean": [0.25, 0.25, 0.25]}),
        ("text", "tokenizer_config.json", {"pad_token": "dog"}),
    ):
        put_in_hub_cache(tmp_path, f"org/{kind}", "a" * 40, backbones[kind])
        edited = put_in_hub_cache(tmp_path, f"org/{kind}", "b" * 40, backbones[kind], "next")
        edit_json(edited / file, **change)
    build = partial(
        ITuningProcessor.from_vision_text_pretrained, "org/vision", "org/text", cache_dir=tmp_path
    )
    found = [
        (built.image_processor.image_mean[0] == 0.25, built.tokenizer.pad_token == "dog")
        for built in (build(), build(vision_revision="next"), build(text_revision="next"))
    ]
    assert found == [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize("kind", ["vision", "clip"])
def test_an_encoder_without_an_image_processor_gets_the_default_at_its_size(
    backbones: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
):
    (tmp_path / "config.json").write_bytes((backbones[kind] / "config.json").read_bytes())
    built = ITuningProcessor.from_vision_text_pretrained(tmp_path, backbones["text"])
    assert "has no image processor; using " in caplog.text
    usual = ITuningProcessor.from_vision_text_pretrained(backbones[kind], backbones["text"])
    found, expected = (p(images=images())["pixel_values"] for p in (built, usual))
    assert torch.equal(found, expected)


def test_missing_tokenizer_files_are_reported(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CaptionerError, match=r"tokenizer is empty: its files are missing"):
        ITuningProcessor.from_pretrained(tmp_path)


def test_edited_settings_take_effect(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    stored = json.loads(path.read_text())["image_processor"]
    edit_json(path, image_processor=stored | {"image_mean": [0.0, 0.0, 0.0]})
    edit_json(tmp_path / "tokenizer_config.json", pad_token="dog")
    loaded = ITuningProcessor.from_pretrained(tmp_path)
    assert list(loaded.image_processor.image_mean) == [0.0, 0.0, 0.0]
    assert loaded.tokenizer.pad_token == "dog"


# --- Extremely long images


@pytest.mark.parametrize("size", [(400, 3), (1001, 13), (7, 1000), (33, 1), (1, 34), (5011, 107)])
def test_cropping_an_extremely_long_image_keeps_its_pixels(size: tuple[int, int]) -> None:
    """Up to rounding, because CLIP's resizing truncates the length to an integer."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    prepare = CLIPImageProcessorPil(do_normalize=False, do_rescale=False)
    cropped = crop_extreme_aspect(image)
    assert max(cropped.size) <= 32 * min(size) < max(size)
    found, expected = (prepare(i, return_tensors="np")["pixel_values"] for i in (cropped, image))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 3
    assert (found != expected).mean() < 0.3


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 24, "width": 24}, "do_center_crop": False},
        {"size": {"height": 24, "width": 24}},
        {"do_resize": False, "crop_size": {"height": 24, "width": 1000}},
    ],
)
def test_nothing_is_cropped_if_the_processor_uses_more_than_the_middle(settings: dict) -> None:
    strip = Image.linear_gradient("L").rotate(90).resize((4000, 20)).convert("RGB")
    plain = CLIPImageProcessorPil()
    own = CLIPImageProcessorPil(**settings)
    expected = own(images=[strip], return_tensors="np")["pixel_values"]
    for processor, options in ((own, {}), (plain, settings)):
        found = prepare_images(processor, [strip], return_tensors="np", **options)["pixel_values"]
        assert np.array_equal(found, expected)


def test_other_images_are_not_cropped() -> None:
    images = [Image.new("RGB", (32, 1)), Image.new("RGB", (3, 96)), np.zeros((1, 400, 3), np.uint8)]
    assert all(a is b for a, b in zip(crop_extreme_aspect(images), images, strict=True))


# --- GPT-2's real tokenizer


@pytest.mark.skipif(not GPT2_TOKENIZER.exists(), reason=f"GPT-2's real tokenizer is not at {GPT2_TOKENIZER}")
def test_captions_in_gpt2s_own_tokens(processor):
    real = ITuningProcessor(processor.image_processor, GPT2Tokenizer.from_pretrained(GPT2_TOKENIZER))
    assert len(real.tokenizer) == 50_257
    batch, end = real(captions=["a dog runs", "a dog"]), 50_256
    assert batch["input_ids"].tolist() == [[end, 64, 3290, 4539, end], [end, 64, 3290, end, end]]
    assert batch["labels"].tolist() == [[end, 64, 3290, 4539, end], [end, 64, 3290, end, -100]]
    assert real.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a dog runs", "a dog"]
    (ids,) = real.encode_captions(["a<|endoftext|>"])
    assert ids[0] == ids[-1] == end
    assert end not in ids[1:-1]
