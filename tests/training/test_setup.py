"""The backbones of a run, and settings that do not fit them."""

import shutil
from pathlib import Path

import pytest
import torch
from runs import Settings
from transformers import GPT2LMHeadModel

from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.run import train
from ituning_hf.training.setup import SCENE_BACKBONES, load_model, with_backbones


@pytest.mark.parametrize(
    ("given", "vision", "text"),
    [
        ({"dataset": "photos"}, "openai/clip-vit-base-patch16", "gpt2"),
        ({"dataset": "photos", "text_model": "mine"}, "openai/clip-vit-base-patch16", "mine"),
        ({"dataset": "photos", "vision_model": "mine"}, "mine", "gpt2"),
        ({"dataset": "photos", "size": "large"}, "openai/clip-vit-base-patch16", "gpt2-large"),
        ({"dataset": "photos", "features": "stored"}, None, "gpt2"),
        ({}, str(SCENE_BACKBONES / "vision"), str(SCENE_BACKBONES / "text")),
        ({"features": "stored"}, None, str(SCENE_BACKBONES / "text")),
    ],
)
def test_default_backbones(given: dict, vision: str | None, text: str):
    args = with_backbones(TrainArguments(**given))
    assert (args.vision_model, args.text_model) == (vision, text)


def test_default_backbones_that_cannot_be_reached_are_one_clear_error(photos: Path, tmp_path: Path):
    """Tests are offline, and the cache has no such models."""
    args = TrainArguments(dataset=str(photos), output_dir=str(tmp_path / "run"))
    advice = r"openai/clip-vit-base-patch16.*give --vision_model FOLDER and --text_model FOLDER"
    with pytest.raises(OSError, match=advice):
        train(args)


def test_weights_stored_in_half_precision_are_float32_on_a_cpu(
    settings: Settings, backbones: dict[str, Path], tmp_path: Path
):
    folder = shutil.copytree(backbones["text"], tmp_path / "text")
    GPT2LMHeadModel.from_pretrained(folder, dtype="float16").save_pretrained(folder)
    for precision, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        args = settings(text_model=str(folder), frozen_precision=precision)
        model, _ = load_model(args, None, torch.device("cpu"))
        assert model.text_model.dtype == dtype


def test_captions_longer_than_the_language_model_are_refused(settings: Settings):
    with pytest.raises(ValueError, match="--max_caption_tokens is 64, and the language model has only 48"):
        train(settings(max_caption_tokens=64))


def test_a_data_set_without_the_validation_split_says_what_to_do(settings: Settings):
    with pytest.raises(ValueError, match="To train without validation, give --eval_split none"):
        train(settings(eval_split="test"))
