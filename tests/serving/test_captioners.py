"""Several captioners by name, over shared frozen models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_families import SmallFamilies
from small_models import ADAPTER, make_captioner, randomize_adapters

import ituning_hf
from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.serving.captioners import load_captioners, name_captioners
from ituning_hf.utils.errors import UserError


@pytest.fixture(scope="module")
def folders(
    backbones: dict[str, Path],
    families: SmallFamilies,
    saved_captioner: Path,
    processor: ITuningProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Captioners: "first" and "second" over the same frozen models, "third" with another language model."""
    root = tmp_path_factory.mktemp("captioners")
    shutil.copytree(saved_captioner, root / "first")
    second = randomize_adapters(make_captioner(backbones, adapter_layers=[1, 3]), seed=5)
    save_captioner(second, processor, root / "second")
    text = families["llama"]
    third = ITuningForCaptioning.from_vision_text_pretrained(backbones["vision"], text, **ADAPTER)
    other = ITuningProcessor.from_vision_text_pretrained(backbones["vision"], text)
    save_captioner(randomize_adapters(third), other, root / "third")
    return {name: root / name for name in ("first", "second", "third")}


def addresses(module: Any) -> set[int]:
    return {p.data_ptr() for name, p in module.named_parameters() if ".adapter." not in name}


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}], ids=["fp32", "bf16", "int8"]
)
def test_captioners_share_frozen_models_and_caption_as_alone(
    folders: dict[str, Path], options: dict[str, Any]
):
    found = load_captioners([*map(str, folders.values())], device="cpu", **options)
    assert list(found) == ["first", "second", "third"]
    first, second, third = (captioner.model for captioner in found.values())
    assert addresses(first.vision_model) == addresses(second.vision_model) == addresses(third.vision_model)
    assert addresses(first.text_model) == addresses(second.text_model)
    assert not addresses(first.text_model) & addresses(third.text_model)
    image, search = Image.linear_gradient("L"), {"num_beams": 2, "max_new_tokens": 6}
    captions = []
    for name, folder in folders.items():
        captioner = found[name]
        alone = ituning_hf.load_captioner(folder, device="cpu", **options)
        assert {p.dtype for p in captioner.model.parameters()} == {p.dtype for p in alone[0].parameters()}
        captions.append(ituning_hf.caption(captioner.model, image, captioner.processor, **search))
        assert captions[-1] == ituning_hf.caption(alone[0], image, alone[1], **search)
    assert len({*captions}) == 3


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("dogs/best", "lr=1/last", "birds"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "birds")
    paths = [
        ".",
        "../dogs/best/",
        f"{tmp_path}/lr=1/last",
        f"night=/{tmp_path}/birds",
        "org/cats",
        "old=org/cats",
    ]
    assert name_captioners(paths) == {
        "birds": ".",
        "dogs": "../dogs/best/",
        "lr=1": f"{tmp_path}/lr=1/last",
        "night": f"/{tmp_path}/birds",
        "org/cats": "org/cats",
        "old": "org/cats",
    }
    with pytest.raises(UserError, match=r"'\.' and '.*birds' have the same name, 'birds': choose different"):
        name_captioners([".", str(tmp_path / "birds")])


def test_errors_name_the_captioner(folders: dict[str, Path]):
    with pytest.raises(OSError, match="no captioner at '/nowhere'"):
        load_captioners([str(folders["first"]), "other=/nowhere"])
