"""The cards in model_cards/: up to date, and without numbers that were not measured."""

import re
import sys
from pathlib import Path

import pytest
import render_model_cards
from huggingface_hub import ModelCard

FOLDER = Path(__file__).resolve().parents[2] / "model_cards"
NAMES = ["coco.md", "flickr30k.md", "nocaps.md"]
REMEMBERED = ["34.8", "28.3", "116.7", "21.8", "35.5", "28.8", "120.0", "22.0", "29.3", "119.4", "22.4"]


def test_the_script_renders_the_cards_of_the_repository(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["render_model_cards.py", "--folder", str(tmp_path)])
    render_model_cards.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
    assert sorted(path.name for path in FOLDER.iterdir()) == ["README.md", *NAMES]
    for name in NAMES:
        assert (FOLDER / name).read_text() == (tmp_path / name).read_text(), "run the script"


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_the_facts_and_no_scores(name: str):
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
    assert "**No weights have been published yet**" in card.text
    table = [line for line in card.text.partition("## Results")[2].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    metrics = ["BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]
    assert header == ["dataset", "split", "images", *metrics, "tokenizer"]
    assert len(rows) == {"nocaps.md": 5}.get(name, 1)
    assert all(row[3:] == [""] * 6 for row in rows)
    assert not re.search("|".join(map(re.escape, REMEMBERED)), card.text)


def test_the_splits_add_up():
    images = {name: [count for *_, count in rows] for name, *_, rows in render_model_cards.CARDS}
    assert sum(render_model_cards.COCO.splits.values()) == 123_287
    assert sum(render_model_cards.FLICKR30K.splits.values()) == 31_014
    *domains, val, test = images["nocaps.md"]
    assert sum(domains) == val == 15_100 - test
