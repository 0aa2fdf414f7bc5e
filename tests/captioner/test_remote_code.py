"""A saved captioner in a process that has neither this package nor its optional dependencies."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import run_fresh
from PIL import Image
from safetensors.torch import save_file
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
    pipeline,
)
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import ituning_hf
from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor

PACKAGE = Path(ituning_hf.__file__).parent

# One process for everything: its imports take seconds.
SCRIPT = """
import json

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers import AutoProcessor, AutoTokenizer, pipeline

folder, again, without_encoder, saved_without_encoder, picture, features = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(picture)
images = [image, image.rotate(90)]
batch = processor(images=images)
found = {
    "training": model.training,
    "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
    "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
    "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
    "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
}
other = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
found["other greedy"] = other.generate(**batch, max_new_tokens=9).tolist()
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
loaded = {
    "model": model,
    "image text": other,
    "config": config,
    "processor": processor,
    "image processor": AutoImageProcessor.from_pretrained(folder, trust_remote_code=True),
    "tokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
}
found["classes"] = {name: f"{type(x).__module__}.{type(x).__qualname__}" for name, x in loaded.items()}
found["layers"] = config.adapter_layers
captioner = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
beams = {"generate_kwargs": {"num_beams": 4, "max_new_tokens": 9}}
outputs = {
    "one image": captioner(images=image, text=""),
    "one text": captioner(images, text=""),
    "a text each": captioner(images, text=["", ""]),
    "batches": captioner(images, text=["", ""], batch_size=2),
    "beams": captioner(images, text=["", ""], **beams),
    "beams in batches": captioner(images, text=["", ""], batch_size=2, **beams),
    "prompts": captioner(images, text=["a dog", "a"], batch_size=2, max_new_tokens=5),
}
found["pipeline"] = {name: [output["generated_text"] for output in value] for name, value in outputs.items()}
for trust in (None, False):
    try:
        AutoModel.from_pretrained(folder, trust_remote_code=trust)
    except ValueError as error:
        found[f"trust {trust}"] = str(error)
model.save_pretrained(again)
processor.save_pretrained(again)

model = AutoModel.from_pretrained(without_encoder, trust_remote_code=True, load_vision_model=False)
features = load_file(features)["features"]
found["greedy without encoder"] = model.generate(visual_features=features, max_new_tokens=9).tolist()
try:
    model.generate(pixel_values=torch.zeros(1, 3, 30, 30))
except ValueError as error:
    found["refusal"] = str(error)
model.save_pretrained(saved_without_encoder)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, backbones, processor) -> dict[str, Path]:
    """A saved captioner, one whose encoder is gone, a picture, its features, and two empty folders."""
    root = tmp_path_factory.mktemp("remote")
    names = ("captioner", "again", "without encoder", "saved without encoder", "picture.png", "features")
    folders = {name: root / name for name in names}
    captioner = make_captioner(backbones, adapter_layers=[1, 2, 3])
    captioner.save_pretrained(folders["captioner"])
    processor.save_pretrained(folders["captioner"])
    pixels = np.random.default_rng(5).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folders["picture.png"])
    features = captioner.get_image_features(processor(images=[image, image.rotate(90)])["pixel_values"])
    save_file({"features": features}, folders["features"])
    encoder = shutil.copytree(backbones["vision"], root / "encoder")
    moved = ITuningForCaptioning.from_pretrained(folders["captioner"], vision_model_name_or_path=encoder)
    moved.save_pretrained(folders["without encoder"])
    shutil.rmtree(encoder)
    return folders


@pytest.fixture(scope="module")
def expected(folders, processor) -> dict[str, Any]:
    """What the package itself makes of the picture."""
    model = ITuningForCaptioning.from_pretrained(folders["captioner"])
    image = Image.open(folders["picture.png"])
    batch = processor(images=[image, image.rotate(90)])
    return {
        "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
        "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
        "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
        "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
    }


@pytest.fixture(scope="module")
def found(folders) -> dict[str, Any]:
    """What a fresh process without the package finds."""
    return run_fresh(SCRIPT, folders["captioner"].parent, *folders.values())


# --- Without the package


def test_captions_are_equal_without_the_package(found, expected):
    assert {name: found[name] for name in expected} == expected
    assert expected["greedy"][0] != expected["greedy"][1]
    assert found["training"] is False


def test_every_auto_class_works_without_the_package(found, expected):
    classes = found["classes"]
    assert classes["model"].startswith("transformers_modules.")
    assert classes["model"].endswith(".modeling_ituning.ITuningForCaptioning")
    assert classes["image text"] == classes["model"]
    assert classes["config"].endswith(".configuration_ituning.ITuningConfig")
    assert classes["processor"].endswith(".processing_ituning.ITuningProcessor")
    assert classes["image processor"].endswith(".CLIPImageProcessorPil")
    assert classes["tokenizer"].endswith(".GPT2Tokenizer")
    assert found["layers"] == [1, 2, 3]
    assert found["other greedy"] == expected["greedy"]


def test_the_pipeline_works_without_the_package(found, expected, processor):
    decode = partial(processor.batch_decode, skip_special_tokens=True)
    assert found["pipeline"] == {
        "one image": expected["text"][:1],
        "one text": expected["text"],
        "a text each": expected["text"],
        "batches": expected["text"],
        "beams": decode(expected["beams"]),
        "beams in batches": decode(expected["beams"]),
        "prompts": decode(expected["prompted"]),
    }


@pytest.mark.parametrize("trust", [None, False])
def test_code_is_not_run_without_trust(found, trust: bool | None):
    assert "contains custom code which must be executed" in found[f"trust {trust}"]
    assert "Please pass the argument `trust_remote_code=True`" in found[f"trust {trust}"]


def test_features_are_captioned_without_package_and_encoder(found, expected):
    assert found["greedy without encoder"] == expected["greedy"]
    assert found["refusal"].startswith("The vision encoder is not loaded")


@pytest.mark.parametrize(
    ("original", "copy"), [("captioner", "again"), ("without encoder", "saved without encoder")]
)
def test_a_captioner_saved_without_the_package_has_the_same_files(found, folders, original: str, copy: str):
    names = {path.name for path in folders[original].iterdir()}
    assert {path.name for path in folders[copy].iterdir() if path.is_file()} == names
    for name in names:
        assert (folders[copy] / name).read_bytes() == (folders[original] / name).read_bytes(), name


# --- With the package


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_with_the_package_the_auto_classes_give_its_own(folders, options: dict[str, bool]):
    folder = folders["captioner"]
    wanted = [
        (AutoConfig, ITuningConfig),
        (AutoModel, ITuningForCaptioning),
        (AutoModelForImageTextToText, ITuningForCaptioning),
        (AutoProcessor, ITuningProcessor),
        (AutoTokenizer, GPT2Tokenizer),
        (AutoImageProcessor, CLIPImageProcessorPil),
    ]
    for auto_class, own in wanted:
        assert type(auto_class.from_pretrained(folder, **options)) is own


def test_the_pipeline_captions_several_images(folders, expected):
    captioner = pipeline("image-text-to-text", model=str(folders["captioner"]))
    image = Image.open(folders["picture.png"])
    outputs = captioner(images=[image, image.rotate(90)], text=["", ""])
    assert [output["generated_text"] for output in outputs] == expected["text"]


# --- The files that are copied

HUB = {
    *("adapter_ituning", "configuration_ituning", "decoders_ituning", "encoders_ituning"),
    *("generation_ituning", "loss_ituning", "modeling_ituning", "pretrained_ituning", "processing_ituning"),
}
THIRD_PARTY = {"torch", "transformers", "safetensors", "huggingface_hub", "PIL", "numpy"}


def test_transformers_copies_every_file_and_requires_few_packages(folders):
    needed = get_relative_import_files(PACKAGE / "captioner" / "modeling_ituning.py")
    assert {Path(path).stem for path in needed} | {"modeling_ituning", "processing_ituning"} == HUB
    assert {path.stem for path in folders["captioner"].glob("*.py")} == HUB
    for name in HUB:
        required = set(get_imports(PACKAGE / "captioner" / f"{name}.py"))
        assert required - THIRD_PARTY <= sys.stdlib_module_names, name
