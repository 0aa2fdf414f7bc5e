"""The processor: exact ids, shapes, padding and pixels."""

import copy
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import IMAGE_SIZE, SHARED_DATA, edit_json, put_in_hub_cache
from small_tokenizers import STYLES, save_tokenizer_of
from torch.utils.data import DataLoader
from transformers import (
    AddedToken,
    AutoProcessor,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    DeiTImageProcessorPil,
    Dinov2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessorPil,
    pipeline,
)

from ituning_hf import ITuningProcessor
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.captioner.images_ituning import crop_extreme_aspect, prepare_images
from ituning_hf.captioner.processing_ituning import caption_rows, load_image_processor, load_tokenizer
from ituning_hf.data import load_image

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


SIZE = {"image_size": 28, "patch_size": 14}
CROP = {"height": 28, "width": 28}
MEAN = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# An encoder, what its `preprocessor_config.json` contains in an old or a new format, and the expected class.
PREPROCESSORS = [
    (CLIPVisionConfig(**SIZE), "CLIPFeatureExtractor", {"size": 28, "crop_size": 28}, CLIPImageProcessorPil),
    (SiglipVisionConfig(**SIZE), "SiglipImageProcessorFast", {"size": CROP}, SiglipImageProcessorPil),
    (ViTConfig(**SIZE), None, {"size": 28}, ViTImageProcessorPil),
    (ViTConfig(**SIZE), "DeiTFeatureExtractor", {"size": 32, "crop_size": 28} | MEAN, DeiTImageProcessorPil),
    (
        Dinov2Config(image_size=70, patch_size=14),  # trained on larger images
        "BitImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": CROP} | MEAN,
        BitImageProcessorPil,
    ),
]


def save_preprocessor(folder: Path, config: PreTrainedConfig, name: str | None, settings: dict) -> Path:
    """Save an encoder without weights, whose repository has code for its image processor."""
    config.save_pretrained(folder)
    key = "feature_extractor_type" if "Feature" in str(name) else "image_processor_type"
    code = {"auto_map": {"AutoImageProcessor": "other/repo--custom.Custom"}}
    (folder / "preprocessor_config.json").write_text(json.dumps({key: name} | settings | code))
    return folder


@pytest.mark.parametrize(("config", "name", "settings", "expected"), PREPROCESSORS)
def test_an_encoder_names_the_class_of_its_image_processor(tmp_path: Path, config, name, settings, expected):
    loaded = load_image_processor(save_preprocessor(tmp_path, config, name, settings))
    assert type(loaded) is expected
    assert "auto_map" not in loaded.to_dict()
    found = prepare_images(loaded, images(), return_tensors="pt")["pixel_values"]
    assert found.shape == (2, 3, 28, 28)
    assert torch.equal(found, expected(**settings)(images(), return_tensors="pt")["pixel_values"])


UNUSABLE_PREPROCESSORS = [
    ("AutoModel", {}, "image_processor_type is 'AutoModel', but Transformers has no such"),
    ("custom.Custom", {}, "image_processor_type is 'custom.Custom'"),
    (None, {"size": 42}, r"prepares images of shape \(3, 42, 42\), which its encoder does not accept"),
    (None, {"size": {"shortest_edge": 28}}, r"prepares images of shape \(3, 28, 42\)"),
    (None, {"size": "wide"}, "The image processor of .* cannot be read"),
]


@pytest.mark.parametrize(("name", "settings", "message"), UNUSABLE_PREPROCESSORS)
def test_an_image_processor_that_does_not_fit_its_encoder_is_refused(tmp_path: Path, name, settings, message):
    with pytest.raises(CaptionerError, match=message):
        load_image_processor(save_preprocessor(tmp_path, ViTConfig(**SIZE), name, settings))


RGB = np.random.default_rng(1).integers(0, 256, (41, 53, 3), dtype=np.uint8)
BRIGHT, GREY = RGB > 127, RGB[..., 0]
# Arrays and tensors of several types and layouts, and the 8-bit image that each of them shows.
ARRAYS = {
    "float64 0..1": (RGB / 255, RGB),
    "float32 0..1": ((RGB / 255).astype(np.float32), RGB),
    "float32 0..255": (RGB.astype(np.float32), RGB),
    "channels first": (torch.tensor(RGB).permute(2, 0, 1) / 255, RGB),
    "stacked": (torch.tensor(RGB).permute(2, 0, 1)[None] / 255, RGB),
    "needs a gradient": ((torch.tensor(RGB) / 255).requires_grad_(), RGB),
    "bfloat16": ((torch.tensor(RGB) // 16 / 16).bfloat16(), np.rint(RGB // 16 / 16 * 255).astype(np.uint8)),
    "black": (np.zeros((9, 8, 3), np.float32), np.zeros((9, 8, 3), np.uint8)),
    "boolean": (BRIGHT, np.uint8(255) * BRIGHT),
    "int64": (RGB.astype(np.int64), RGB),
    "float32 above 1 by rounding": (
        np.nextafter(np.float32(1), np.float32(2)) * (RGB / np.float32(255)),
        RGB,
    ),
    "float64 below 0 by rounding": (RGB / 255 - 1e-8, RGB),
    "float64 above 255 by rounding": (RGB + 1e-4, RGB),
    "uint16": (RGB.astype(np.uint16) * 257, RGB),
    "dark uint16": (RGB.astype(np.uint16), np.rint(RGB / 257).astype(np.uint8)),
    "dark uint16, big-endian": (RGB.astype(">u2"), np.rint(RGB / 257).astype(np.uint8)),
    "dark uint16 tensor": (torch.tensor(RGB.astype(np.uint16)), np.rint(RGB / 257).astype(np.uint8)),
    "int32 of 16 bits": (torch.tensor(RGB.astype(np.int32) * 257), RGB),
    "grey": (GREY / 255, np.stack([GREY] * 3, axis=-1)),
    "with alpha": (
        np.dstack([RGB, GREY]) / 255,
        np.asarray(load_image(Image.fromarray(np.dstack([RGB, GREY])))),
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_prepared_as_the_8_bit_image_that_they_show(processor, name: str):
    array, shown = ARRAYS[name]
    expected = processor.image_processor(Image.fromarray(shown), return_tensors="pt")["pixel_values"]
    tolerance = {"atol": 0.02, "rtol": 0.0} if name == "with alpha" else {"atol": 0.0, "rtol": 0.0}
    torch.testing.assert_close(processor(images=array)["pixel_values"], expected, **tolerance)
    images = [
        array[0] if name == "stacked" else array,
        RGB.astype(np.float32),
    ]  # one does not affect the other
    torch.testing.assert_close(processor(images=images)["pixel_values"][:1], expected, **tolerance)


UNKNOWN_RANGES = [
    (RGB / 128 - 1, r"float\d\d has values from -1 to 0.992188, expected 0\.\.1 or 0\.\.255"),
    (RGB / 250, r"float\d\d has values from 0 to 1.02"),
    (RGB / 100 - 0.2, r"float\d\d has values from -0.2 to 2.35, expected 0\.\.1 or 0\.\.255"),
    (RGB * 1.01, r"float\d\d has values from 0 to 257.[56]"),
    (np.full((9, 8, 3), np.nan), "from nan to nan"),
    (RGB.astype(np.int32) - 1, r"int32 has values from -1 to 254, expected 0\.\.255 or 0\.\.65535"),
    (RGB.astype(np.int64) * 258, "int64 has values from 0 to 65790"),
    (np.zeros((0, 8, 3)), "The image has no pixels"),
    (RGB.astype(complex), "type complex128, expected integers, floats or booleans"),
]


@pytest.mark.parametrize(("array", "message"), UNKNOWN_RANGES)
def test_arrays_in_no_known_range_are_refused(processor, array: np.ndarray, message: str):
    for images in (array, [RGB, array], torch.tensor(array)):
        with pytest.raises(ValueError, match=message):
            processor(images=images)


def test_arrays_of_objects_are_refused(processor):
    with pytest.raises(ValueError, match="type object, expected integers, floats or booleans"):
        processor(images=RGB.astype(object))


def test_with_another_rescale_factor_arrays_are_passed_on_unchanged(processor):
    expected = processor(images=RGB / 255, do_rescale=False)["pixel_values"]
    settings = processor.image_processor.to_dict() | {"rescale_factor": 1.0}
    own = ITuningProcessor(CLIPImageProcessorPil(**settings), processor.tokenizer)
    for found in (processor(images=RGB / 255, rescale_factor=1.0), own(images=RGB / 255)):
        torch.testing.assert_close(found["pixel_values"], expected)


def test_without_rescaling_arrays_are_passed_on_unchanged(processor):
    expected = processor(images=RGB)["pixel_values"]
    found = processor(images=RGB / 255, do_rescale=False)["pixel_values"]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.0)
    normalized = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    array = np.random.default_rng(0).standard_normal((3, 30, 30))
    assert np.array_equal(
        processor(images=array, **normalized, return_tensors="np")["pixel_values"][0], array
    )


MODES = {
    "I;16": Image.fromarray(np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)),
    "I": Image.fromarray(np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.int32)),
    "F": Image.fromarray(np.linspace(0, 1, 40 * 50).reshape(40, 50).astype(np.float32)),
    "L": Image.fromarray(GREY),
    "1": Image.fromarray(GREY > 127),
    "RGBA": Image.fromarray(np.dstack([RGB, GREY])),
    "LA": Image.fromarray(np.dstack([RGB, GREY])).convert("LA"),
    "PA": Image.fromarray(GREY).convert("PA"),
    **{mode: Image.fromarray(RGB).convert(mode) for mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX")},
}


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_of_every_mode_are_prepared_as_load_image_does(processor, mode: str):
    expected = processor.image_processor(load_image(MODES[mode]), return_tensors="pt")["pixel_values"]
    assert expected.std() > 0.3
    assert MODES[mode].mode == mode
    assert torch.equal(processor(images=MODES[mode])["pixel_values"], expected)


def test_rounding_errors_do_not_change_the_range_of_float_images(processor):
    values = np.asarray(MODES["F"], np.float32)
    expected = processor(images=MODES["F"])["pixel_values"]
    for changed in (values * np.float32(1.000001), values - np.float32(1e-7)):
        assert torch.equal(processor(images=Image.fromarray(changed))["pixel_values"], expected)


@pytest.mark.parametrize("name", ["turned.jpg", "transparent.png", "deep.png"])
def test_files_and_opened_files_are_prepared_as_load_image_does(processor, tmp_path: Path, name: str):
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / name
    if name == "turned.jpg":
        Image.fromarray(RGB).save(path, exif=exif)
    elif name == "transparent.png":
        Image.fromarray(GREY).convert("P").save(path, transparency=0, exif=exif)
    else:
        MODES["I;16"].save(path, exif=exif)
    expected = processor.image_processor(load_image(path), return_tensors="pt")["pixel_values"]
    with Image.open(path) as opened, path.open("rb") as file:
        for image in (path, str(path), opened, load_image(path), file, io.BytesIO(path.read_bytes())):
            assert torch.equal(processor(images=[image])["pixel_values"], expected)


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


# --- Tokenizers of other language models

TEXT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 300}
# A style of tokenizer, a configuration with its special tokens, the expected BOS, EOS and padding tokens, and
# the tokens of "a dog runs".
LANGUAGE_MODELS = {
    "gpt2": (GPT2Config(bos_token_id=0, eos_token_id=0, **TEXT), [0, 0, 0], DOG),
    "opt": (OPTConfig(bos_token_id=2, eos_token_id=2, pad_token_id=1, **TEXT), [2, 2, 1], [67, 286, 73, 295]),
    "llama": (
        LlamaConfig(bos_token_id=1, eos_token_id=2, **TEXT),
        [1, 2, 2],
        [277, 276, 285, 263, 279, 274, 297],
    ),
    "qwen2": (Qwen2Config(bos_token_id=0, eos_token_id=2, **TEXT), [0, 2, 2], [67, 286, 73, 295]),
    # Of several EOS tokens, captions end with the tokenizer's own.
    "gemma": (
        Gemma3TextConfig(bos_token_id=2, eos_token_id=[7, 1], pad_token_id=0, **TEXT),
        [2, 1, 0],
        [261, 278, 287, 265, 281, 276, 299],
    ),
    # Without chat tuning, captions end with the text's token.
    "qwen2, base": (Qwen2Config(bos_token_id=None, eos_token_id=0, **TEXT), [0, 0, 0], [67, 286, 73, 295]),
}


def save_language_model(folder: Path, style: str, **changes: Any) -> Path:
    """Save a language model without weights."""
    save_tokenizer_of(style.partition(",")[0], folder)
    LANGUAGE_MODELS[style][0].save_pretrained(folder)
    edit_json(folder / "config.json", **changes)
    return folder


@pytest.mark.parametrize("style", LANGUAGE_MODELS)
def test_captions_and_prompts_have_the_special_tokens_of_the_language_model(
    processor, tmp_path: Path, style: str
):
    _, (begin, end, pad), dog = LANGUAGE_MODELS[style]
    built = ITuningProcessor(
        processor.image_processor, load_tokenizer(save_language_model(tmp_path / "text", style))
    )
    built.save_pretrained(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    text = "two  b\u00fcrds <s>a</s> <|im_end|>"  # other spaces, letters and special tokens
    for own in (built, ITuningProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert own.chat_template is own.tokenizer.chat_template is None
        batch = own(captions=["a dog runs"])
        assert batch["input_ids"].tolist() == [[begin, *dog, end]]
        (ids,) = own.encode_captions([text])
        decoded = own.batch_decode([*batch["input_ids"].tolist(), ids], skip_special_tokens=True)
        assert decoded == ["a dog runs", text]
        prompts = own(text=["a dog", ""])["input_ids"].tolist()  # captions continue with the same tokens
        length = len(prompts[0])
        assert prompts == [[begin, *dog[: length - 1]], [pad] * (length - 1) + [begin]]


UNUSABLE_TOKENIZERS = [
    ({"vocab_size": 299}, "tokenizer of .* has 300 tokens, its language model only 299: give a folder"),
    ({"bos_token_id": 300, "vocab_size": 310}, "has bos_token_id=300, its tokenizer only 300 tokens"),
    ({"pad_token_id": 40}, "has pad_token_id=40, which is the word '.*'"),
    ({"bos_token_id": 40}, "has bos_token_id=40, which is the word '.*'"),
    ({"eos_token_id": None}, "eos_token_id=None"),
]


@pytest.mark.parametrize(("changes", "message"), UNUSABLE_TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_the_language_model_is_refused(tmp_path: Path, changes, message: str):
    with pytest.raises(CaptionerError, match=message):
        load_tokenizer(save_language_model(tmp_path, "llama", **changes))


def test_a_special_token_without_a_role_may_be_the_padding_token(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(save_language_model(tmp_path, "llama"))
    tokenizer.add_tokens(AddedToken("<|pad|>", special=True))
    tokenizer.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", pad_token_id=300, vocab_size=301)
    assert load_tokenizer(tmp_path).pad_token == "<|pad|>"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    folder = save_language_model(tmp_path, "llama")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CaptionerError, match=r"has no tokenizer \(such as tokenizer\.json\)"):
        load_tokenizer(folder)


def test_only_special_tokens_may_exceed_the_embeddings(processor, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(save_language_model(tmp_path, "gemma"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path)
    (ids,) = ITuningProcessor(processor.image_processor, load_tokenizer(tmp_path)).encode_captions(
        ["<image>"]
    )
    assert max(ids) < 300
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CaptionerError, match="has 302 tokens, its language model only 300"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_begin_token_is_refused(processor, tmp_path: Path):
    with pytest.raises(CaptionerError, match="has no bos_token, which captions need: set it as in"):
        ITuningProcessor(processor.image_processor, save_tokenizer_of("qwen2", tmp_path))


# --- Padding, truncation


WIDTHS = [
    ({}, [5, 5]),
    ({"padding": "longest"}, [5, 5]),
    ({"padding": False}, [5, 3]),
    ({"padding": "do_not_pad", "max_length": 4}, [4, 3]),
    ({"padding": "max_length", "max_length": 8}, [8, 8]),
    ({"padding": "max_length", "max_length": 4, "truncation": True}, [4, 4]),
    ({"padding": "max_length", "max_length": 4, "truncation": False}, [5, 5]),
    ({"padding": True, "max_length": 4}, [4, 4]),
    ({"truncation": "longest_first", "max_length": 9}, [5, 5]),
    ({"truncation": "do_not_truncate", "max_length": 3}, [5, 5]),
    ({"pad_to_multiple_of": 4}, [8, 8]),
    ({"padding": "max_length", "max_length": 6, "pad_to_multiple_of": 4}, [8, 8]),
    ({"text_kwargs": {"padding": "max_length"}, "common_kwargs": {"max_length": 7}}, [7, 7]),
]


@pytest.mark.parametrize(("options", "widths"), WIDTHS)
def test_prompts_are_padded_and_truncated_as_requested(processor, options: dict[str, Any], widths: list[int]):
    batch = processor(text=["a dog runs", "a man"], return_tensors=None, **options)
    tokens = [[0, *DOG][: options.get("max_length", 9)], [0, *MAN]]
    if options.get("truncation") in (False, "do_not_truncate"):
        tokens[0] = [0, *DOG]
    masks = [[0] * (n - len(row)) + [1] * len(row) for n, row in zip(widths, tokens, strict=True)]
    padded = [[0] * (n - len(row)) + row for n, row in zip(widths, tokens, strict=True)]
    assert batch == {"input_ids": padded, "attention_mask": masks}


@pytest.mark.parametrize(("options", "widths"), WIDTHS)
def test_captions_are_padded_and_truncated_as_requested(
    processor, options: dict[str, Any], widths: list[int]
):
    batch = processor(captions=["a dog", "a"], return_tensors=None, **options)
    limit = 9 if options.get("truncation") in (False, "do_not_truncate") else options.get("max_length", 9)
    rows = [[0, *DOG[: min(3, limit - 2)], 0], [0, DOG[0], 0]]
    padding = [width - len(row) for row, width in zip(rows, widths, strict=True)]
    assert batch == {
        "input_ids": [row + [0] * n for row, n in zip(rows, padding, strict=True)],
        "attention_mask": [[1] * len(row) + [0] * n for row, n in zip(rows, padding, strict=True)],
        "labels": [row + [-100] * n for row, n in zip(rows, padding, strict=True)],
    }


def test_the_tokenizers_own_limit_applies_without_max_length(processor):
    limited = ITuningProcessor(processor.image_processor, copy.deepcopy(processor.tokenizer))
    limited.tokenizer.model_max_length = 4
    options = {"padding": "max_length", "truncation": True}
    assert limited(text=["a dog runs", "a"], **options)["input_ids"].tolist() == [
        [0, *DOG[:3]],
        [0, 0, 0, 65],
    ]
    found = limited(captions=["a dog runs", "a"], **options)["input_ids"].tolist()
    assert found == [[0, *DOG[:2], 0], [0, 65, 0, 0]]
    for option in ({"padding": "max_length"}, {"truncation": True}):
        with pytest.raises(ValueError, match="The tokenizer has no model_max_length: pass max_length"):
            processor(text="a dog", **option)


class Photographs(torch.utils.data.Dataset):
    """Prepares one image at a time, as the BLIP and GIT notebooks do."""

    captions = ("a dog runs", "a man")

    def __init__(self, processor: ITuningProcessor) -> None:
        self.processor = processor

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        options = {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "pt"}
        encoding = self.processor(images=images()[index], captions=self.captions[index], **options)
        return {name: tensor.squeeze() for name, tensor in encoding.items()}


def test_a_data_set_of_prepared_examples_trains_as_a_batch_prepared_at_once(processor, captioner):
    (batch,) = DataLoader(Photographs(processor), batch_size=2)
    assert batch["input_ids"].tolist() == [[0, *DOG, *[0] * 7], [0, *MAN, *[0] * 9]]
    direct = processor(images=images(), captions=list(Photographs.captions))
    losses = []
    for inputs in (batch, direct):
        captioner.zero_grad()
        loss = captioner(**inputs).loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in captioner.parameters() if p.requires_grad])
        losses.append((loss.detach(), gradient))
    torch.testing.assert_close(losses[0], losses[1])


# --- Pipelines


def test_a_pipeline_accepts_files_texts_and_options(processor, captioner, tmp_path: Path):
    captioner.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = str(tmp_path / "photograph.png")
    images(1)[0].save(path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path), max_new_tokens=4)

    def of(prompt: str) -> str:
        ids = captioner.generate(**processor(images=path, text=prompt), max_new_tokens=4)
        return processor.batch_decode(ids, skip_special_tokens=True)[0]

    expected = [of(""), of("a dog runs")]
    assert expected[0] != expected[1][len("a dog runs") :]
    found = [
        pipe(path, text=["", "a dog runs"]),
        pipe([path, path], text=["", "a dog runs"]),
        pipe([path, path], text=["", "a dog runs"], padding="max_length", max_length=9, truncation=True),
        [
            answer
            for (answer,) in pipe(({"images": path, "text": t} for t in ("", "a dog runs")), batch_size=2)
        ],
    ]
    assert [[answer["generated_text"] for answer in answers] for answers in found] == [expected] * 4


def test_the_callers_tokenizer_keeps_its_padding_side(processor):
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.padding_side = "right"
    own = ITuningProcessor(processor.image_processor, tokenizer)
    assert (tokenizer.padding_side, own.tokenizer.padding_side) == ("right", "left")


# --- Tensors, errors


@pytest.mark.parametrize(
    "name",
    ["padding", "truncation", "max_length", "do_resize", "text_kwargs", "images_kwargs", "common_kwargs"],
)
def test_none_means_that_an_option_is_not_given(processor, name: str):
    inputs = {"images": images(), "text": ["a dog runs", "a man"]}
    expected, found = processor(**inputs), processor(**inputs, **{name: None})
    assert lists(found) == lists(expected)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


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
    ({"text": "a dog", "max_length": 1}, "max_length is 1, expected 2 or more: BOS, a token"),
    ({"images": images(), "text": []}, "text is an empty list: pass at least one prompt"),
    ({"text": "a dog", "padding": "maxlength"}, "maxlength is not a valid PaddingStrategy"),
    ({"text": "a dog", "truncation": "longest"}, "longest is not a valid TruncationStrategy"),
    ({"text": ["a dog", "a"], "padding": False}, "Use padding=True to ensure"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUT)
def test_invalid_inputs_are_refused(processor, inputs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


MISPLACED = [
    ({"text": "a dog", "do_resize": False}, r"\['do_resize'\] apply to images, but no images were passed"),
    ({"images": images(), "max_length": 4}, r"\['max_length'\] apply to text or captions, but neither"),
    (
        {"text": "a dog", "truncatoin": 3},
        r"Unknown options \['truncatoin'\]: options of text are \['padding',",
    ),
    ({"images": images(), "images_kwargs": {"siez": 3}}, r"Unknown options \['siez'\]"),
]


@pytest.mark.parametrize(("inputs", "message"), MISPLACED)
def test_unknown_and_misplaced_options_are_refused(processor, inputs: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        processor(**inputs)


# --- Saving and loading


def test_a_loaded_processor_gives_equal_pixels_and_ids(processor, captioner, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_ituning.py",
        "configuration_ituning.py",
        "decoder_layers_ituning.py",
        "decoders_ituning.py",
        "encoders_ituning.py",
        "images_ituning.py",
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
        ("text", "tokenizer_config.json", {"model_max_length": 7}),
    ):
        put_in_hub_cache(tmp_path, f"org/{kind}", "a" * 40, backbones[kind])
        edited = put_in_hub_cache(tmp_path, f"org/{kind}", "b" * 40, backbones[kind], "next")
        edit_json(edited / file, **change)
    build = partial(
        ITuningProcessor.from_vision_text_pretrained, "org/vision", "org/text", cache_dir=tmp_path
    )
    found = [
        (built.image_processor.image_mean[0] == 0.25, built.tokenizer.model_max_length == 7)
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


@pytest.mark.parametrize("style", STYLES)
def test_missing_tokenizer_files_are_reported(processor, tmp_path: Path, style: str):
    save_tokenizer_of(style, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CaptionerError, match="tokenizer is empty: its files are missing"):
        ITuningProcessor(processor.image_processor, AutoTokenizer.from_pretrained(tmp_path))


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


@pytest.mark.parametrize("shortest_edge", [224, 256])
@pytest.mark.parametrize("size", [(400, 3), (1001, 13), (7, 1000), (33, 1), (1, 34), (5011, 107)])
def test_cropping_an_extremely_long_image_keeps_its_pixels(size: tuple[int, int], shortest_edge: int) -> None:
    """Up to rounding, because resizing truncates the length to an integer."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    resize = {"shortest_edge": shortest_edge}
    prepare = CLIPImageProcessorPil(size=resize, do_normalize=False, do_rescale=False)
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
        {"size": {"shortest_edge": 24, "longest_edge": 900}},
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
    for image in (Image.new("RGB", (32, 1)), Image.new("RGB", (3, 96))):
        assert crop_extreme_aspect(image) is image


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
