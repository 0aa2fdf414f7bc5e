"""A small dataset of real files, and settings that train on it in seconds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import ADAPTER
from transformers import GPT2LMHeadModel

from ituning_hf import ITuningForCaptioning
from ituning_hf.training.arguments import TrainArguments

COLOURS = ["red", "green", "blue", "white", "black"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder in the imagefolder form: 11 pictures to train on and 3 for validation.

    The captions differ in length and number, so that means over tokens and over rows differ too.
    """
    folder = tmp_path / "photos"
    for split, count in (("train", 11), ("val", 3)):
        (folder / split).mkdir(parents=True)
        lines = []
        for i in range(count):
            colour = COLOURS[i % len(COLOURS)]
            Image.new("RGB", (37 + i, 41), colour).save(folder / split / f"{i}.png")
            captions = [f"a {colour} dog", f"a {colour} bird on the grass" + " in a tree" * (i % 3)]
            lines.append(json.dumps({"file_name": f"{i}.png", "captions": captions[: 1 + i % 2]}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def backbones(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small backbones, with larger embeddings: the logits of a new language model are almost equal."""
    folder = tmp_path_factory.mktemp("training") / "text"
    shutil.copytree(backbones["text"], folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    model.save_pretrained(folder)
    return backbones | {"text": folder}


@pytest.fixture
def projected_dtypes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, torch.dtype]]:
    """The data types of the image features, and of their keys, in each projection."""
    dtypes: list[tuple[torch.dtype, torch.dtype]] = []
    project = ITuningForCaptioning.project_visual

    def watch(self: ITuningForCaptioning, visual_features: torch.Tensor) -> Any:
        projected = project(self, visual_features)
        dtypes.append((visual_features.dtype, next(iter(projected.values()))[0].dtype))
        return projected

    monkeypatch.setattr(ITuningForCaptioning, "project_visual", watch)
    return dtypes


@pytest.fixture
def settings(photos: Path, backbones: dict[str, Path], tmp_path: Path) -> Callable[..., TrainArguments]:
    """Return a function that makes the settings of a short run: the name of its folder, and changes."""

    def make(name: str = "run", /, **changes: Any) -> TrainArguments:
        defaults = {
            "vision_model": str(backbones["vision"]),
            "text_model": str(backbones["text"]),
            **ADAPTER,
            "dataset": str(photos),
            "captions_per_image": 2,
            "max_caption_tokens": 24,
            "per_device_train_batch_size": 4,
            "max_train_steps": 6,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            "output_dir": str(tmp_path / name),
        }
        return TrainArguments(**defaults | changes)

    return make
