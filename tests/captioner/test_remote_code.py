"""A saved captioner in a process that has neither this package nor its optional dependencies."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import run_fresh
from PIL import Image
from small_models import make_captioner
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    GPT2Tokenizer,
)

import ituning_hf
from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor

# Loads a captioner, saves it, loads what it saved, and saves that without its encoder.
SCRIPT = """
import json
import os

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers import AutoProcessor, AutoTokenizer, pipeline

folder, picture, encoder, again, once_more = sys.argv[1:]
image = Image.open(picture)
images = [image, image.rotate(90)]


def load(auto_class, folder, **options):
    return auto_class.from_pretrained(folder, trust_remote_code=True, **options)


def caption(model, processor):
    batch = processor(images=images)
    return {
        "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
        "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
        "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
        "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
    }


loaded = {
    "model": load(AutoModel, folder),
    "image text": load(AutoModelForImageTextToText, folder),
    "config": load(AutoConfig, folder),
    "processor": load(AutoProcessor, folder),
    "image processor": load(AutoImageProcessor, folder),
    "tokenizer": load(AutoTokenizer, folder),
}
model, processor = loaded["model"], loaded["processor"]
found = {
    "training": model.training,
    "layers": loaded["config"].adapter_layers,
    "captions": [caption(model, processor), caption(loaded["image text"], processor)],
}

captioner = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
beams = {"generate_kwargs": {"num_beams": 4, "max_new_tokens": 9}}
outputs = {
    "one image": captioner(image, text=""),
    "one text": captioner(images, text=""),
    "a text each": captioner(images, text=["", ""]),
    "beams in batches": captioner(images, text=["", ""], batch_size=2, **beams),
    "prompts": captioner(images, text=["a dog", "a"], batch_size=2, max_new_tokens=5),
}
found["pipeline"] = {name: [x["generated_text"] for x in texts] for name, texts in outputs.items()}

model.save_pretrained(again)
processor.save_pretrained(again)
loaded["copy"], processor = load(AutoModel, again), load(AutoProcessor, again)
found["captions"].append(caption(loaded["copy"], processor))
features = loaded["copy"].get_image_features(processor(images=images)["pixel_values"])

os.rename(encoder, encoder + " moved")
without_encoder = load(AutoModel, again, load_vision_model=False)
loaded["no encoder"] = without_encoder.vision_model
found["of features"] = without_encoder.generate(visual_features=features, max_new_tokens=9).tolist()
try:
    without_encoder.generate(pixel_values=torch.zeros(1, 3, 30, 30))
except ValueError as error:
    found["refusal"] = str(error)
without_encoder.save_pretrained(once_more)
processor.save_pretrained(once_more)

found["classes"] = {name: f"{type(x).__module__}.{type(x).__qualname__}" for name, x in loaded.items()}
for trust in (None, False):
    try:
        AutoModel.from_pretrained(folder, trust_remote_code=trust)
    except ValueError as error:
        found[f"trust {trust}"] = str(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, backbones, processor) -> Path:
    """A folder with a captioner and its processor in "captioner", its encoder, and a picture."""
    root = tmp_path_factory.mktemp("remote")
    vision = shutil.copytree(backbones["vision"], root / "vision")
    captioner = make_captioner(backbones | {"vision": vision}, adapter_layers=[1, 2, 3])
    captioner.save_pretrained(root / "captioner")
    processor.save_pretrained(root / "captioner")
    pixels = np.random.default_rng(5).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def expected(folder: Path, processor) -> dict[str, Any]:
    """The captions of the package itself."""
    model = ITuningForCaptioning.from_pretrained(folder / "captioner")
    image = Image.open(folder / "picture.png")
    batch = processor(images=[image, image.rotate(90)])
    return {
        "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
        "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
        "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
        "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
    }


@pytest.fixture(scope="module")
def found(folder: Path, expected) -> dict[str, Any]:
    """The results of the script."""
    names = ("captioner", "picture.png", "vision", "again", "once more")
    found = run_fresh(SCRIPT, folder, *(folder / name for name in names))
    (folder / "vision moved").rename(folder / "vision")
    return found


def test_captions_are_equal_without_the_package(found, expected):
    assert found["captions"] == [expected] * 3
    assert expected["greedy"][0] != expected["greedy"][1]
    assert found["training"] is False


def test_every_auto_class_works_without_the_package(found):
    classes = found["classes"]
    assert classes["model"].startswith("transformers_modules.")
    assert classes["model"].endswith(".modeling_ituning.ITuningForCaptioning")
    assert classes["image text"] == classes["model"]
    assert classes["copy"].endswith(".modeling_ituning.ITuningForCaptioning")
    assert classes["copy"] != classes["model"]
    assert classes["config"].endswith(".configuration_ituning.ITuningConfig")
    assert classes["processor"].endswith(".processing_ituning.ITuningProcessor")
    assert classes["image processor"].endswith(".CLIPImageProcessorPil")
    assert classes["tokenizer"].endswith(".GPT2Tokenizer")
    assert found["layers"] == [1, 2, 3]


def test_the_pipeline_works_without_the_package(found, expected, processor):
    decode = partial(processor.batch_decode, skip_special_tokens=True)
    assert found["pipeline"] == {
        "one image": expected["text"][:1],
        "one text": expected["text"],
        "a text each": expected["text"],
        "beams in batches": decode(expected["beams"]),
        "prompts": decode(expected["prompted"]),
    }


def test_features_are_captioned_without_the_package_and_the_encoder(found, expected):
    assert found["classes"]["no encoder"].startswith("transformers_modules.")
    assert found["of features"] == expected["greedy"]
    assert found["refusal"].startswith("The vision encoder is not loaded")


@pytest.mark.parametrize("trust", [None, False])
def test_code_is_not_run_without_trust(found, trust: bool | None):
    assert "contains custom code which must be executed" in found[f"trust {trust}"]
    assert "Please pass the argument `trust_remote_code=True`" in found[f"trust {trust}"]


def test_the_copies_are_identical_and_contain_all_code(found, folder: Path):
    original, *copies = (
        {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.is_file()}
        for name in ("captioner", "again", "once more")
    )
    assert copies == [original, original]
    package = Path(ituning_hf.__file__).parent / "captioner"
    code = {path.name: path.read_bytes() for path in package.glob("*_ituning.py")}
    assert {name: text for name, text in original.items() if name.endswith(".py")} == code
    assert len(code) == 12


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_with_the_package_the_auto_classes_use_its_classes(folder: Path, options: dict[str, bool]):
    classes = {
        AutoConfig: ITuningConfig,
        AutoModel: ITuningForCaptioning,
        AutoModelForImageTextToText: ITuningForCaptioning,
        AutoProcessor: ITuningProcessor,
        AutoTokenizer: GPT2Tokenizer,
        AutoImageProcessor: CLIPImageProcessorPil,
    }
    for auto_class, own in classes.items():
        assert type(auto_class.from_pretrained(folder / "captioner", **options)) is own
