"""A captioner, pictures that it has never seen, and captions of people that resemble what it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import make_captioner
from transformers import GPT2LMHeadModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor, iter_captions, save_captioner
from ituning_hf.evaluation.arguments import EvaluateArguments

NUM_IMAGES = 7
SEARCH = {"num_beams": 3, "max_new_tokens": 9, "batch_size": 2}
WORDS = ["dog", "bird", "bike", "tree"]


@pytest.fixture(scope="session")
def saved(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved captioner, whose language model can be moved: a fresh one's logits are all alike."""
    folder = tmp_path_factory.mktemp("captioner")
    shutil.copytree(backbones["text"], folder / "text")
    text = GPT2LMHeadModel.from_pretrained(folder / "text")
    with torch.no_grad():
        text.transformer.wte.weight.mul_(20)
    text.save_pretrained(folder / "text")
    model = make_captioner(backbones | {"text": folder / "text"})
    save_captioner(model, processor, folder / "best")
    return folder / "best"


@pytest.fixture
def captioner(saved: Path, tmp_path: Path) -> Path:
    """A copy of the captioner, whose card may change."""
    return Path(shutil.copytree(saved, tmp_path / "my-captioner"))


@pytest.fixture(scope="session")
def said(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Pictures 0.png to 6.png, and what the captioner says of each in the batches of `SEARCH`."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(NUM_IMAGES)]
    for i, path in enumerate(paths):
        image = Image.linear_gradient("L").rotate(50 * i).convert("RGB")
        image.paste((35 * i, 200 - 30 * i, 80 * (i % 3)), (0, 0, 60 + 20 * i, 90 + 10 * i))
        image.save(path)
    model, processor = ITuningForCaptioning.from_pretrained(saved), ITuningProcessor.from_pretrained(saved)
    captions = [result.captions[0] for result in iter_captions(model, processor, paths, **SEARCH)]
    assert len(set(captions)) > 3
    return folder, captions


def references_of(captions: list[str]) -> list[list[str]]:
    """Captions of people: they know the words that the captioner says, and not how many there are."""
    return [
        [f"{text} a {WORDS[i % 4]}", f"a {WORDS[i % 4]} runs"][: 1 + (i + 1) % 2]
        for i, text in enumerate(captions)
    ]


@pytest.fixture
def photos(said: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """The pictures as a data set in the imagefolder form, all of its split "test"."""
    pictures, captions = said
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder / "test")
    lines = [
        json.dumps({"file_name": f"{i}.png", "captions": texts})
        for i, texts in enumerate(references_of(captions))
    ]
    (folder / "test" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def settings(captioner: Path, photos: Path, tmp_path: Path) -> Callable[..., EvaluateArguments]:
    """Return a function that makes settings for a short evaluation, with changes by keyword."""

    def make(**changes: Any) -> EvaluateArguments:
        defaults = {
            "model": str(captioner),
            "dataset": str(photos),
            "split": "test",
            "java": False,
            "dataloader_num_workers": 0,
            "output_dir": str(tmp_path / "report"),
        }
        return EvaluateArguments(**defaults | SEARCH | changes)

    return make


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative path."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def flags(args: EvaluateArguments) -> list[str]:
    """Write settings as a command line."""
    given = {name: value for name, value in args.to_dict().items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]
