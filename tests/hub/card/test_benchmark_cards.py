"""The cards in model_cards/: as rendered today, and without a number that nobody measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ituning_hf.hub.benchmarks import COCO, FLICKR30K, NOCAPS, base_config, benchmark_cards

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "model_cards"
NAMES = ["coco.md", "flickr30k.md", "nocaps.md"]
REMEMBERED = ["34.8", "28.3", "116.7", "21.8", "35.5", "28.8", "120.0", "22.0", "29.3", "119.4", "22.4"]


@pytest.fixture(scope="module")
def cards() -> dict[str, ModelCard]:
    return benchmark_cards()


def result_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.partition("## Results")[2].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_folder_holds_what_is_rendered(cards: dict[str, ModelCard]):
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(["README.md", *NAMES])
    assert list(cards) == NAMES
    for name, card in cards.items():
        assert (FOLDER / name).read_bytes() == str(card).encode(), "run examples/render_model_cards.py"


def test_the_script_renders_them(tmp_path: Path):
    script = ROOT / "examples" / "render_model_cards.py"
    subprocess.run([sys.executable, str(script), "--folder", str(tmp_path)], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_result_has_a_number(name: str):
    text = (FOLDER / name).read_text()
    header, _, *rows = result_rows(text)
    assert header == ["data set", "split", "images", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]
    assert len(rows) == {"nocaps.md": 5}.get(name, 1)
    assert all(row[3:] == [""] * 5 for row in rows)
    assert not re.search("|".join(map(re.escape, REMEMBERED)), text)
    assert "**No such weights have been published yet**" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_can_read_them(name: str):
    card = ModelCard.load(FOLDER / name)
    assert str(card) == (FOLDER / name).read_text()
    assert card.data.to_dict() == {
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["image-captioning", "i-tuning", "ituning", "clip", "gpt2"],
        "base_model": ["openai/clip-vit-base-patch16", "gpt2"],
        "base_model_relation": "adapter",
    }


def test_the_splits_add_up():
    assert sum(COCO.splits.values()) == 123_287
    assert sum(FLICKR30K.splits.values()) == 31_014
    *domains, val, test = NOCAPS
    assert sum(part.num_images for part in domains) == val.num_images
    assert val.num_images + test.num_images == 15_100


def test_base_is_the_papers_base(cards: dict[str, ModelCard]):
    assert base_config().adapter_hidden_size == 384
    assert all("| 14,178,816 of 224,418,048 (6.32%) |" in card.text for card in cards.values())
