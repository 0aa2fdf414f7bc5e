"""`caption` and `iter_captions` against `generate` and `decode` of each image; loading a captioner."""

import io
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import make_captioner, put_in_hub_cache
from transformers import GenerationConfig

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.data.images import UnreadableImageError, load_image
from ituning_hf.inference import captioning
from ituning_hf.inference.captioning import CaptionResult, caption, iter_captions
from ituning_hf.inference.loading import load_captioner
from ituning_hf.utils.errors import UserError

SHORT = {"num_beams": 3, "max_new_tokens": 9}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of different sizes and colours, so that each image has other features."""
    folder, rng, paths = tmp_path_factory.mktemp("photographs"), np.random.default_rng(5), []
    for i in range(5):
        colour = np.array([60 * i, 255 - 40 * i, 30 * i])
        pixels = colour * 0.7 + rng.random((31 + 5 * i, 47, 3)) * 70
        paths.append(folder / f"photo{i}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def words(processor: ITuningProcessor) -> dict[str, list[int]]:
    """Allow only tokens of letters, so that different ids are different texts."""
    texts = {i: processor.tokenizer.decode([i]) for i in range(1, len(processor.tokenizer))}
    return {"suppress_tokens": [i for i, text in texts.items() if not text.strip(" ").isalpha()]}


def generate_and_decode(
    model: Any, processor: Any, path: Path, prompt: str | None = None, **options: Any
) -> list[str]:
    """Caption one image with the model and the tokenizer alone."""
    inputs = processor(images=load_image(path)) | ({} if prompt is None else processor(text=prompt))
    ids = model.generate(**inputs, **SHORT | options)
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_captions_equal_those_of_each_image_alone(captioner, processor, photographs, batch_size):
    expected = [generate_and_decode(captioner, processor, path)[0] for path in photographs]
    assert len(set(expected)) > 1
    assert caption(captioner, photographs, processor, batch_size=batch_size, **SHORT) == expected


def test_a_single_image_gives_a_single_result(captioner, processor, photographs):
    first = caption(captioner, photographs[1:2], processor, **SHORT)
    assert caption(captioner, str(photographs[1]), processor, **SHORT) == first[0]
    several = caption(captioner, photographs[1], processor, num_captions=2, **SHORT)
    assert several == caption(captioner, photographs[1:2], processor, num_captions=2, **SHORT)[0]
    assert caption(captioner, [], processor) == []


def test_images_may_be_paths_bytes_of_files_and_images(captioner, processor, photographs):
    path = photographs[1]
    with Image.open(path) as opened:
        sources = [path, path.read_bytes(), opened, opened.convert("RGB"), b"no picture"]
        *results, wrong = iter_captions(captioner, processor, sources, **SHORT)
    captions = generate_and_decode(captioner, processor, path)
    names = [str(path), "image 1", str(path), "image 3"]
    assert results == [CaptionResult(name, captions) for name in names]
    assert (wrong.source, wrong.captions) == ("image 4", [])
    assert "cannot read the given image" in wrong.error


def test_several_captions_are_distinct_and_the_most_likely_comes_first(
    captioner, processor, photographs, words
):
    options = SHORT | words
    captions = caption(captioner, photographs[:3], processor, num_captions=3, batch_size=2, **options)
    assert all(len(own) == len(set(own)) == 3 for own in captions)
    assert [own[0] for own in captions] == caption(captioner, photographs[:3], processor, **options)
    for own, path in zip(captions, photographs, strict=False):
        assert own == generate_and_decode(captioner, processor, path, num_return_sequences=3, **words)


def test_sampling_gives_more_captions_than_beams(captioner, processor, photographs, words):
    captions = caption(
        captioner, photographs[0], processor, num_captions=7, num_beams=1, do_sample=True, **words
    )
    assert len(captions) == 7
    assert len(set(captions)) > 1
    captioner.generation_config.do_sample = True
    assert len(caption(captioner, photographs[0], processor, num_captions=4, num_beams=1)) == 4


@pytest.mark.parametrize("prompt", ["a dog", ["a dog", "two red birds sit", "a", "", "the man  rides"]])
def test_a_caption_begins_with_its_prompt(captioner, processor, photographs, prompt):
    captions = caption(captioner, photographs, processor, prompt=prompt, batch_size=2, **SHORT)
    prompts = [prompt] * 5 if isinstance(prompt, str) else prompt
    for text, own, path in zip(captions, prompts, photographs, strict=True):
        assert text.startswith(own)
        assert [text] == generate_and_decode(captioner, processor, path, own)


def test_captions_have_no_special_tokens_and_no_outer_whitespace(
    captioner, processor, photographs, monkeypatch
):
    end = processor.tokenizer.eos_token_id
    tokens = processor.tokenizer("  a dog  . ", add_special_tokens=False).input_ids
    ids = torch.tensor([[end, *tokens, end, end]])
    monkeypatch.setattr(type(captioner), "generate", lambda *args, **kwargs: ids)
    assert caption(captioner, photographs[0], processor) == "a dog  ."


def test_an_unreadable_image_gives_an_error_and_does_not_affect_others(
    captioner, processor, photographs, tmp_path
):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(photographs[0].read_bytes()[:300])
    sources = [
        broken,
        missing,
        *photographs[:3],
        missing,
        photographs[3],
    ]  # of the first two, none is readable
    prompts = ["x", "y", "a", "a dog", "two", "z", "the"]
    results = list(iter_captions(captioner, processor, sources, prompt=prompts, batch_size=2, **SHORT))
    assert [result.source for result in results] == list(map(str, sources))
    assert [bool(result.error) for result in results] == [True, True, False, False, False, True, False]
    assert results[0].captions == results[1].captions == results[5].captions == []
    assert str(broken) in results[0].error
    assert str(missing) in results[1].error
    good = [result.captions[0] for result in results if result.error is None]
    kept = [prompt for prompt, result in zip(prompts, results, strict=True) if result.error is None]
    assert good == caption(captioner, photographs[:4], processor, prompt=kept, **SHORT)
    with pytest.raises(UnreadableImageError, match=r"missing\.png"):
        caption(captioner, [photographs[0], missing], processor, **SHORT)


def test_images_are_loaded_one_batch_ahead_and_no_further(captioner, processor, monkeypatch):
    loaded: list[Any] = []
    monkeypatch.setattr(captioning, "load_image", lambda image: loaded.append(image) or image)
    images = [Image.new("RGB", (30, 30), (20 * i, 0, 0)) for i in range(9)]
    results = iter_captions(captioner, processor, images, batch_size=2, **SHORT)
    assert loaded == []
    next(results)
    assert 2 <= len(loaded) <= 4
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load-image")]
    assert len(loaded) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_captions": 0}, "num_captions is 0, expected a positive integer"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"num_captions": 4, "num_beams": 3}, "num_captions is 4 and num_beams 3: .* Raise num_beams"),
        ({"num_captions": 2, "num_beams": 1}, "num_captions is 2 and num_beams 1"),
        ({"num_captions": 4, "num_beams": 2, "do_sample": True}, "num_captions is 4 and num_beams 2"),
        ({"prompt": ["a", "b", "c"]}, "prompt has 3 texts for 2 images"),
    ],
)
def test_bad_options_are_refused_before_an_image_is_opened(captioner, processor, options, message):
    with pytest.raises(UserError, match=message):
        iter_captions(captioner, processor, ["no/a.png", "no/b.png"], **options)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (7, {}, "images has a int, expected a path"),
        (io.BytesIO(b""), {}, "images has a BytesIO"),
        (["a.png", None], {}, "images has a NoneType"),
        ("a.png", {"num_return_sequences": 3}, "num_return_sequences is not .* num_captions"),
        ("a.png", {"return_dict_in_generate": True}, "return_dict_in_generate is not .* model.generate"),
        (["a.png"], {"prompt": [None]}, r"prompt is \[None\], expected texts"),
    ],
)
def test_arguments_of_another_type_are_refused(captioner, processor, images, options, message):
    with pytest.raises(TypeError, match=message):
        caption(captioner, images, processor, **options)


def test_captioning_during_training_has_no_dropout(backbones, processor, photographs):
    model = make_captioner(backbones, adapter_dropout=0.9)
    expected = caption(model, photographs, processor, **SHORT)
    model.train()
    assert caption(model, photographs, processor, **SHORT) == expected
    assert model.training


def test_the_model_can_be_a_folder_or_of_the_remote_codes_class(
    captioner, processor, photographs, saved_captioner, remote_class
):
    expected = caption(captioner, photographs[:2], processor, **SHORT)
    assert caption(str(saved_captioner), photographs[:2], processor, **SHORT) == expected
    remote = remote_class.from_pretrained(saved_captioner)
    assert not isinstance(remote, ITuningForCaptioning)
    for model in (saved_captioner, ITuningForCaptioning.from_pretrained(saved_captioner), remote):
        assert caption(model, photographs[:2], **SHORT) == expected


def test_a_missing_processor(captioner, saved_captioner, photographs, tmp_path):
    with pytest.raises(UserError, match=r"never saved.*caption\(model, images, processor\)"):
        caption(captioner, photographs)
    shutil.copytree(saved_captioner, tmp_path / "captioner")
    for name in ("processor_config.json", "tokenizer.json"):
        (tmp_path / "captioner" / name).unlink()
    with pytest.raises(UserError, match=r"no processor in '.*captioner'.*save_captioner"):
        caption(tmp_path / "captioner", photographs)


def test_load_captioner(saved_captioner, processor):
    model, loaded_processor = load_captioner(saved_captioner, device="cpu", dtype="bfloat16")
    assert (model.device.type, model.training) == ("cpu", False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert loaded_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_cpu_computes_in_fp32_unless_another_precision_is_given(
    backbones, processor, photographs, tmp_path: Path, monkeypatch
):
    model = make_captioner(backbones, dtype="float16")
    assert {weight.dtype for weight in model.text_model.parameters() if not weight.requires_grad} == {
        torch.float16
    }
    for part in ("vision", "text"):
        model.save_backbone(part, tmp_path / part)
    save_captioner(model, processor, tmp_path / "captioner")
    loaded, _ = load_captioner(tmp_path / "captioner", device="cpu")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    options: list[dict] = []
    load_model = captioning.load_model
    monkeypatch.setattr(captioning, "load_model", lambda *a, **o: options.append(o) or load_model(*a, **o))
    monkeypatch.setattr(captioning, "usable_device", lambda device: torch.device("cpu"))
    caption(tmp_path / "captioner", photographs[:1], max_new_tokens=2)
    assert options == [{"dtype": "float32"}]


def test_the_best_device_is_taken_unless_one_is_given(saved_captioner, monkeypatch):
    assert load_captioner(saved_captioner)[0].device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}'"):
            load_captioner(saved_captioner, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    assert load_captioner(saved_captioner)[0].device.type == "cpu"


def test_backbones_can_be_loaded_from_another_folder(backbones, processor, saved_captioner, tmp_path):
    old = {part: shutil.copytree(backbones[part], tmp_path / f"old-{part}") for part in ("vision", "text")}
    make_captioner(old).save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    moved = {f"{part}_model": path.rename(tmp_path / f"new-{part}") for part, path in old.items()}
    with pytest.raises(OSError, match="vision"):
        load_captioner(tmp_path / "captioner")
    model, _ = load_captioner(tmp_path / "captioner", **moved)
    state, expected = model.state_dict(), load_captioner(saved_captioner)[0].state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_revision_selects_captioner_and_processor(saved_captioner, photographs, tmp_path, monkeypatch):
    put_in_hub_cache(tmp_path, "org/captioner", "a" * 40, saved_captioner, "v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, processor = load_captioner("org/captioner", revision="v2")
    assert (model.name_or_path, len(processor.tokenizer)) == ("org/captioner", 300)
    assert caption(model, photographs[0], **SHORT) == caption(model, photographs[0], processor, **SHORT)
    with pytest.raises(OSError, match="'org/captioner'"):
        load_captioner("org/captioner")


def test_other_models_and_missing_folders_are_refused(backbones, tmp_path):
    with pytest.raises(ValueError, match="'gpt2', expected 'ituning'"):
        caption(backbones["text"], "photo.png")
    with pytest.raises(OSError, match="none"):
        caption(tmp_path / "none", "photo.png")


def test_the_default_is_five_beams_and_forty_tokens_or_the_generation_settings(
    captioner, processor, photographs, monkeypatch
):
    expected = generate_and_decode(captioner, processor, photographs[0], num_beams=5, max_new_tokens=40)
    asked = []
    generate = captioner.generate
    monkeypatch.setattr(captioner, "generate", lambda **options: asked.append(options) or generate(**options))
    assert caption(captioner, photographs[:1], processor) == expected
    caption(captioner, photographs[0], processor, generation_config=GenerationConfig(max_new_tokens=3))
    captioner.generation_config.num_beams = 2
    caption(captioner, photographs[0], processor)
    assert [options["num_beams"] for options in asked] == [5, 1, 2]
    assert not any("max_new_tokens" in options for options in asked)
