"""The making of the shipped backbones, by a handful of steps."""

import math
from pathlib import Path

import pytest
import torch

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.demo.pretraining import _contrast, pretrain_backbones
from ituning_hf.training.setup import SCENE_BACKBONES

SMALL = {"num_scenes": 120, "vision_steps": 2, "text_steps": 2, "report": lambda line: None}


def test_the_contrast_of_true_and_false_entries_against_a_plain_loop():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    is_true = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) < 0.4
    is_true[4] = False  # a picture of which nothing is true
    losses = []
    for row in range(5):
        false = [scores[row, c].exp() for c in range(7) if not is_true[row, c]]
        for column in range(7):
            if is_true[row, column]:
                true = scores[row, column].exp()
                losses.append(-math.log(true / (true + sum(false))))
    assert float(_contrast(scores, is_true)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_same_command_makes_the_same_files(tmp_path: Path):
    for name in ("one", "two"):
        pretrain_backbones(tmp_path / name, **SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(path.relative_to(SCENE_BACKBONES) for path in SCENE_BACKBONES.rglob("*.*"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_what_it_makes_has_the_shape_of_what_is_shipped(tmp_path: Path):
    made = pretrain_backbones(tmp_path, **SMALL)
    shipped = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    ours, theirs = (ITuningForCaptioning.from_vision_text_pretrained(*parts) for parts in (made, shipped))
    other = {"_name_or_path", "vocab_size"}  # another place, and fewer words in fewer scenes
    for kind in ("vision_config", "text_config"):
        mine, shown = (getattr(model.config, kind).to_dict() for model in (ours, theirs))
        assert mine.keys() == shown.keys()
        assert {name for name in mine if mine[name] != shown[name]} <= other
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True) == 132_352
    words = ITuningProcessor.from_vision_text_pretrained(*shipped).tokenizer
    assert len(words) == 405
