"""A saved captioner in processes that have neither this package nor its optional dependencies."""

import ast
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

LOAD = """
import json

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder, picture, again = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(picture)
batch = processor(images=[image, image.rotate(90)])
found = {
    "model": f"{type(model).__module__}.{type(model).__qualname__}",
    "training": model.training,
    "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
    "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
    "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
    "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
}
"""

ALL_AUTO_CLASSES = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, pipeline

other = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
found["other greedy"] = other.generate(**batch, max_new_tokens=9).tolist()
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
loaded = {
    "image text": other,
    "config": config,
    "processor": processor,
    "image processor": AutoImageProcessor.from_pretrained(folder, trust_remote_code=True),
    "tokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
}
found["classes"] = {name: f"{type(x).__module__}.{type(x).__qualname__}" for name, x in loaded.items()}
found["layers"] = config.adapter_layers
captioner = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
found["pipeline"] = [captioner(images=image, text="")[0]["generated_text"]]
images = [image, image.rotate(90)]
beams = {"generate_kwargs": {"num_beams": 4, "max_new_tokens": 9}}
many = {
    "one text": captioner(images, text=""),
    "a text each": captioner(images, text=["", ""]),
    "batches": captioner(images, text=["", ""], batch_size=2),
    "beams": captioner(images, text=["", ""], **beams),
    "beams in batches": captioner(images, text=["", ""], batch_size=2, **beams),
    "prompts": captioner(images, text=["a dog", "a"], batch_size=2, max_new_tokens=5),
}
found["many"] = {name: [output["generated_text"] for output in outputs] for name, outputs in many.items()}
for trust in (None, False):
    try:
        AutoModel.from_pretrained(folder, trust_remote_code=trust)
    except ValueError as error:
        found[f"trust {trust}"] = str(error)
"""

WITHOUT_ENCODER = """
import json

import torch
from safetensors.torch import load_file
from transformers import AutoModel

folder, features, again = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True, load_vision_model=False)
features = load_file(features)["features"]
found = {
    "vision model": f"{type(model.vision_model).__module__}.{type(model.vision_model).__qualname__}",
    "greedy": model.generate(visual_features=features, max_new_tokens=9).tolist(),
}
try:
    model.generate(pixel_values=torch.zeros(1, 3, 30, 30))
except ValueError as error:
    found["refusal"] = str(error)
model.save_pretrained(again)
"""

SAVE = """
model.save_pretrained(again)
processor.save_pretrained(again)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, backbones, processor) -> dict[str, Path]:
    """A saved captioner, and a picture."""
    root = tmp_path_factory.mktemp("remote")
    captioner = make_captioner(backbones, adapter_layers=[1, 2, 3])
    captioner.save_pretrained(root / "captioner")
    processor.save_pretrained(root / "captioner")
    pixels = np.random.default_rng(5).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    names = ("captioner", "picture.png", "again", "once more")
    return {"root": root} | {name: root / name for name in names}


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
def first(folders) -> dict[str, Any]:
    """What a fresh process finds in the folder; it also saves the captioner again."""
    script = LOAD + ALL_AUTO_CLASSES + SAVE
    return run_fresh(script, folders["root"], folders["captioner"], folders["picture.png"], folders["again"])


@pytest.fixture(scope="module")
def second(first, folders) -> dict[str, Any]:
    """What another fresh process finds in what the first one saved."""
    return run_fresh(
        LOAD + SAVE, folders["root"], folders["again"], folders["picture.png"], folders["once more"]
    )


# --- Without the package


@pytest.mark.parametrize("process", ["first", "second"])
def test_captions_are_equal_without_the_package(process: str, expected, request: pytest.FixtureRequest):
    found = request.getfixturevalue(process)
    assert {name: found[name] for name in expected} == expected
    assert expected["greedy"][0] != expected["greedy"][1]
    assert found["training"] is False


@pytest.mark.parametrize("process", ["first", "second"])
def test_the_class_comes_from_the_folder(process: str, request: pytest.FixtureRequest):
    name = request.getfixturevalue(process)["model"]
    assert name.startswith("transformers_modules.")
    assert name.endswith(".modeling_ituning.ITuningForCaptioning")


def test_every_auto_class_works_without_the_package(first, expected):
    classes = first["classes"]
    assert classes["image text"] == first["model"]
    assert classes["config"].endswith(".configuration_ituning.ITuningConfig")
    assert classes["processor"].endswith(".processing_ituning.ITuningProcessor")
    assert classes["image processor"].endswith(".CLIPImageProcessorPil")
    assert classes["tokenizer"].endswith(".GPT2Tokenizer")
    assert first["layers"] == [1, 2, 3]
    assert first["other greedy"] == expected["greedy"]


def test_the_pipeline_works_without_the_package(first, expected, processor):
    assert first["pipeline"] == expected["text"][:1]
    decode = partial(processor.batch_decode, skip_special_tokens=True)
    assert first["many"] == {
        "one text": expected["text"],
        "a text each": expected["text"],
        "batches": expected["text"],
        "beams": decode(expected["beams"]),
        "beams in batches": decode(expected["beams"]),
        "prompts": decode(expected["prompted"]),
    }


@pytest.mark.parametrize("trust", [None, False])
def test_code_is_not_run_without_trust(first, trust: bool | None):
    assert "contains custom code which must be executed" in first[f"trust {trust}"]
    assert "Please pass the argument `trust_remote_code=True`" in first[f"trust {trust}"]


@pytest.mark.parametrize("copy", ["again", "once more"])
def test_it_saves_itself_file_by_file(second, folders, copy: str):
    original = {path.name: path.read_bytes() for path in folders["captioner"].iterdir() if path.is_file()}
    found = {path.name: path.read_bytes() for path in folders[copy].iterdir() if path.is_file()}
    assert set(found) == set(original)
    differing = {name for name in found if found[name] != original[name]}
    assert differing == set()


def test_features_are_captioned_without_package_and_encoder(
    folders, expected, backbones, processor, tmp_path: Path
):
    encoder = shutil.copytree(backbones["vision"], tmp_path / "encoder")
    model = ITuningForCaptioning.from_pretrained(folders["captioner"], vision_model_name_or_path=encoder)
    model.save_pretrained(tmp_path / "captioner")
    image = Image.open(folders["picture.png"])
    features = model.get_image_features(processor(images=[image, image.rotate(90)])["pixel_values"])
    save_file({"features": features}, tmp_path / "features.safetensors")
    shutil.rmtree(encoder)
    places = [tmp_path / name for name in ("captioner", "features.safetensors", "again")]
    found = run_fresh(WITHOUT_ENCODER, tmp_path, *places)
    assert found["vision model"].startswith("transformers_modules.")
    assert found["greedy"] == expected["greedy"]
    assert found["refusal"].startswith("The vision encoder is not loaded")
    for path in places[0].iterdir():
        assert (places[2] / path.name).read_bytes() == path.read_bytes(), path.name


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


# --- What imports what

HUB = {
    "adapter_ituning",
    "configuration_ituning",
    "decoders_ituning",
    "encoders_ituning",
    "generation_ituning",
    "loss_ituning",
    "modeling_ituning",
    "pretrained_ituning",
    "processing_ituning",
}
THIRD_PARTY = {"torch", "transformers", "safetensors", "huggingface_hub", "PIL", "numpy"}


def test_the_folder_has_exactly_the_nine_files():
    assert {path.stem for path in (PACKAGE / "captioner").glob("*_ituning.py")} == HUB


@pytest.mark.parametrize("name", sorted(HUB))
def test_hub_files_import_little_and_one_another_flat(name: str):
    path = PACKAGE / "captioner" / f"{name}.py"
    assert set(get_imports(path)) - THIRD_PARTY <= sys.stdlib_module_names
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module in HUB


def test_transformers_copies_every_file_that_the_model_needs(folders):
    needed = {
        Path(path).stem for path in get_relative_import_files(PACKAGE / "captioner" / "modeling_ituning.py")
    }
    assert needed | {"modeling_ituning", "processing_ituning"} == HUB
    assert {path.stem for path in folders["captioner"].glob("*.py")} == HUB
