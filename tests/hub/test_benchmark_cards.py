"""The cards in model_cards/: up to date, and without numbers that were not measured."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ituning_hf.hub.benchmarks import COCO, FLICKR30K, NOCAPS, base_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "model_cards"
NAMES = ["coco.md", "flickr30k.md", "nocaps.md"]
REMEMBERED = ["34.8", "28.3", "116.7", "21.8", "35.5", "28.8", "120.0", "22.0", "29.3", "119.4", "22.4"]


def test_the_script_renders_the_cards_of_the_repository(tmp_path: Path, monkeypatch):
    script = ROOT / "examples" / "render_model_cards.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--folder", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(["README.md", *NAMES])
    for name in NAMES:
        assert (FOLDER / name).read_bytes() == (tmp_path / name).read_bytes(), f"run {script}"


@pytest.mark.parametrize("name", NAMES)
def test_no_result_has_a_number(name: str):
    text = (FOLDER / name).read_text()
    lines = [line for line in text.partition("## Results")[2].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["data set", "split", "images", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]
    assert len(rows) == {"nocaps.md": 5}.get(name, 1)
    assert all(row[3:] == [""] * 5 for row in rows)
    assert not re.search("|".join(map(re.escape, REMEMBERED)), text)
    assert "**No weights have been published yet**" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_can_read_them(name: str):
    card = ModelCard.load(FOLDER / name)
    assert card.data.to_dict() == {
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["image-captioning", "i-tuning", "ituning"],
        "base_model": ["openai/clip-vit-base-patch16", "gpt2"],
        "base_model_relation": "adapter",
    }
    assert "| 14,178,816 of 224,418,048 (6.32%) |" in card.text  # the paper's Base size


def test_the_splits_add_up():
    assert base_config().adapter_hidden_size == 384
    assert sum(COCO.splits.values()) == 123_287
    assert sum(FLICKR30K.splits.values()) == 31_014
    *domains, val, test = NOCAPS
    assert sum(part.num_images for part in domains) == val.num_images
    assert val.num_images + test.num_images == 15_100
