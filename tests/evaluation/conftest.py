"""A captioner, images that it was not trained on, and references that resemble its captions."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import make_captioner
from transformers import GPT2LMHeadModel

from ituning_hf.captioner.processing_ituning import ITuningProcessor
from ituning_hf.cli import main
from ituning_hf.hub.saving import save_captioner
from ituning_hf.inference.captioning import iter_captions
from ituning_hf.inference.loading import load_captioner

NUM_IMAGES = 7
SEARCH = {"num_beams": 3, "max_new_tokens": 9, "batch_size": 2}
WORDS = ["dog", "bird", "bike", "tree"]
Evaluate = Callable[..., int]


@pytest.fixture(scope="session")
def saved(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved captioner whose captions depend on the image: its language model's logits differ enough."""
    folder = tmp_path_factory.mktemp("captioner")
    shutil.copytree(backbones["text"], folder / "text")
    text = GPT2LMHeadModel.from_pretrained(folder / "text")
    with torch.no_grad():
        text.transformer.wte.weight.mul_(20)
    text.save_pretrained(folder / "text")
    model = make_captioner(backbones | {"text": folder / "text"})
    texts = {i: processor.tokenizer.decode([i]) for i in range(len(processor.tokenizer))}
    # Files contain spaces instead of control characters, so captions would not be equal to those in files.
    model.generation_config.suppress_tokens = [i for i, text in texts.items() if not text.isprintable()]
    save_captioner(model, processor, folder / "best")
    return folder / "best"


@pytest.fixture
def captioner(saved: Path, tmp_path: Path) -> Path:
    """A copy of the captioner, whose card may change."""
    return Path(shutil.copytree(saved, tmp_path / "my-captioner"))


@pytest.fixture(scope="session")
def captioned(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An imagefolder dataset, test/0.png to test/6.png, and its captions by the captioner."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "test" / f"{i}.png" for i in range(NUM_IMAGES)]
    (folder / "test").mkdir()
    for i, path in enumerate(paths):
        image = Image.linear_gradient("L").rotate(50 * i).convert("RGB")
        image.paste((35 * i, 200 - 30 * i, 80 * (i % 3)), (0, 0, 60 + 20 * i, 90 + 10 * i))
        image.save(path)
    model, processor = load_captioner(saved, device="cpu")
    captions = [result.captions[0] for result in iter_captions(model, processor, paths, **SEARCH)]
    assert len(set(captions)) > 3
    rows = zip((path.name for path in paths), references_of(captions), strict=True)
    lines = [json.dumps({"file_name": name, "captions": texts}) for name, texts in rows]
    (folder / "test" / "metadata.jsonl").write_text("\n".join(lines))
    return folder, captions


def references_of(captions: list[str]) -> list[list[str]]:
    """One or two references for each caption, with some of its words."""
    return [
        [f"{text} a {WORDS[i % 4]}", f"a {WORDS[i % 4]} runs"][: 1 + (i + 1) % 2]
        for i, text in enumerate(captions)
    ]


def make_flags(**settings: Any) -> list[str]:
    """Return the flags of a short evaluation, without those that are None."""
    settings = {"split": "test", "java": False, "dataloader_num_workers": 0} | SEARCH | settings
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


@dataclass(frozen=True)
class Finished:
    """An evaluation with default settings, and its page."""

    captioner: Path
    report: Path
    page: Path
    printed: str


@pytest.fixture(scope="session")
def finished(
    saved: Path, captioned: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """An evaluation. Tests copy its folders before they change them."""
    folder = tmp_path_factory.mktemp("finished")
    captioner = Path(shutil.copytree(saved, folder / "my-captioner"))
    photos = Path(shutil.copytree(captioned[0], folder / "photos"))
    page = folder / "page.html"
    flags = make_flags(model=captioner, dataset=photos, output_dir=folder / "report", report=page)
    with redirect_stdout(io.StringIO()) as output:
        assert main(["evaluate", *flags]) == 0
    return Finished(captioner, folder / "report", page, output.getvalue())


@pytest.fixture
def photos(captioned: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the dataset."""
    return Path(shutil.copytree(captioned[0], tmp_path / "photos"))


@pytest.fixture
def flags(captioner: Path, photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return `make_flags` with a captioner, a dataset and an output folder, with changes by keyword."""
    own = {"model": captioner, "dataset": photos, "output_dir": tmp_path / "report"}
    return lambda **changes: make_flags(**own | changes)


@pytest.fixture
def evaluate(flags: Callable[..., list[str]]) -> Evaluate:
    """Return a function that runs `ituning evaluate` with changed settings, and returns the exit code."""
    return lambda **changes: main(["evaluate", *flags(**changes)])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_captions(report: Path) -> list[str]:
    """Return the captions of a report, and check the form of its COCO results."""
    results = read_json(report / "results.json")
    assert all(list(result) == ["image_id", "caption"] for result in results)
    return [result["caption"] for result in results]
