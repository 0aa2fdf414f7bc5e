"""A saved captioner in a process that has neither this package nor its optional dependencies."""

import inspect
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh_process import run_fresh
from PIL import Image
from small_families import SmallFamilies
from small_models import make_captioner, randomize_adapters
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

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"llama_tied": "siglip", "qwen2": "dinov2_with_registers", "gemma3": "vit"}


def caption(model: Any, processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    """Caption two images; the scripts have the same function."""
    batch = processor(images=images)
    return {
        "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
        "beams": model.generate(**batch, max_new_tokens=9, num_beams=4).tolist(),
        "prompted": model.generate(**batch, **processor(text=["a dog", "a"]), max_new_tokens=5).tolist(),
        "text": processor.batch_decode(model.generate(**batch), skip_special_tokens=True),
    }


CAPTION = f"""
from pathlib import Path
from typing import Any

from PIL import Image


{inspect.getsource(caption)}
"""

# Loads a captioner, saves it, loads what it saved, and saves that without its encoder.
SCRIPT = (
    CAPTION
    + """
import json
import os

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers import AutoProcessor, AutoTokenizer, pipeline

folder, picture, encoder, again, once_more, families = sys.argv[1:]
image = Image.open(picture)
images = [image, image.rotate(90)]


def load(auto_class, folder, **options):
    return auto_class.from_pretrained(folder, trust_remote_code=True, **options)


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
    "captions": [caption(model, processor, images), caption(loaded["image text"], processor, images)],
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
found["captions"].append(caption(loaded["copy"], processor, images))
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

found["families"] = {
    path.name: caption(load(AutoModel, path), load(AutoProcessor, path), images)
    for path in Path(families).iterdir()
}
"""
)

# With the families that docs/families.md adds: runs their tests, trains a captioner for a step, and saves it.
ADDED_SCRIPT = (
    CAPTION
    + """
import json

import pytest

tests = ["tests/captioner/test_families.py", "-k", "stablelm or ijepa", "-p", "no:cacheprovider"]
found = {"failed": pytest.main(tests)}

import torch
from small_families import SmallFamilies
from small_models import randomize_adapters

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.captioner import decoder_layers_ituning, decoders_ituning, encoders_ituning

root, folder, picture = sys.argv[1:]
image = Image.open(picture)
images = [image, image.rotate(90)]
families = SmallFamilies(Path(root))
pair = families["ijepa"], families["stablelm"]
model = randomize_adapters(ITuningForCaptioning.from_vision_text_pretrained(*pair))
processor = ITuningProcessor.from_vision_text_pretrained(*pair)
batch = processor(images=images, captions=[["a dog runs", "a man rides"], ["two red birds sit in a tree"]])
optimizer = torch.optim.SGD(model.adapters()[0].parameters(), lr=0.1)
loss = model.train()(**batch).loss
loss.backward()
optimizer.step()
found["losses"] = [loss.item(), model(**batch).loss.item()]
found["captions"] = caption(model.eval(), processor, images)
bases = {
    decoders_ituning.StableLmFamily: decoder_layers_ituning.DecoderFamily,
    encoders_ituning.IJepaFamily: encoders_ituning.EncoderFamily,
}
found["unknown"] = [
    name
    for family, base in bases.items()
    for name in vars(family)
    if not (name in base.__annotations__ or hasattr(base, name))
]
model.save_pretrained(folder)
processor.save_pretrained(folder)
"""
)


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
    return caption(model, processor, [image, image.rotate(90)])


@pytest.fixture(scope="module")
def added(folder: Path) -> dict[str, Any]:
    """The results of the script in a copy of the package with the code of docs/families.md."""
    root = folder / "copy"
    ignored = shutil.ignore_patterns("scene_backbones")
    shutil.copytree(Path(ituning_hf.__file__).parent, root / "ituning_hf", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("*.py", "captioner/conftest.py", "captioner/reference.py", "captioner/test_families.py"):
        for path in (ROOT / "tests").glob(name):
            copied = root / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for name, code in blocks:
        with (root / name).open("a", encoding="utf-8") as file:
            file.write(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    arguments = (folder / "models", folder / "families" / "stablelm", folder / "picture.png")
    return run_fresh(ADDED_SCRIPT, root, *arguments, hide=False, environment=environment)


@pytest.fixture(scope="module")
def of_families(folder: Path, added) -> dict[str, Any]:
    """The captions of the package itself, of captioners that it saves in "families"."""
    image, families = Image.open(folder / "picture.png"), SmallFamilies(folder / "models")
    captions = {"stablelm": added["captions"]}
    for text, vision in FAMILIES.items():
        pair = families[vision], families[text]
        model = randomize_adapters(ITuningForCaptioning.from_vision_text_pretrained(*pair))
        processor = ITuningProcessor.from_vision_text_pretrained(*pair)
        captions[text] = caption(model, processor, [image, image.rotate(90)])
        model.save_pretrained(folder / "families" / text)
        processor.save_pretrained(folder / "families" / text)
    return captions


@pytest.fixture(scope="module")
def found(folder: Path, expected, of_families) -> dict[str, Any]:
    """The results of the script."""
    names = ("captioner", "picture.png", "vision", "again", "once more", "families")
    found = run_fresh(SCRIPT, folder, *(folder / name for name in names))
    (folder / "vision moved").rename(folder / "vision")
    return found


def test_captions_are_equal_without_the_package(found, expected):
    assert found["captions"] == [expected] * 3
    assert expected["greedy"][0] != expected["greedy"][1]
    assert found["training"] is False


def test_captions_of_other_families_are_equal_without_the_package(found, of_families):
    assert found["families"] == of_families
    assert all(captions["beams"][0] != captions["beams"][1] for captions in of_families.values())


def test_a_family_is_added_as_the_page_says(added):
    assert added["failed"] == 0
    assert added["unknown"] == []
    before, after = added["losses"]
    assert after < before - 1e-3


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
