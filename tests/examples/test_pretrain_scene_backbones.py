"""The pretraining of the shipped backbones, with a handful of steps."""

import math
from pathlib import Path

import pytest
import torch
from pretrain_scene_backbones import SERIES, _contrast, all_phrases, pretrain_backbones, true_phrases

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.data.scenes import make_scene
from ituning_hf.training.setup import SCENE_BACKBONES

SMALL = {"num_scenes": 50, "vision_steps": 1, "text_steps": 1, "report": lambda line: None}


def test_contrast_equals_a_plain_loop():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    is_true = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) < 0.4
    is_true[4] = False  # no phrase is true of this picture
    losses = []
    for row in range(5):
        false = [scores[row, c].exp() for c in range(7) if not is_true[row, c]]
        for column in range(7):
            if is_true[row, column]:
                true = scores[row, column].exp()
                losses.append(-math.log(true / (true + sum(false))))
    assert float(_contrast(scores, is_true)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_true_phrases_appear_in_the_captions_of_their_scene():
    phrases = {phrase for group in all_phrases() for phrase in group}
    assert len(phrases) == 48 + 96 + 5 * 48
    for index in range(100):
        scene = make_scene(SERIES, index)
        true = true_phrases(scene)
        assert true <= phrases
        assert len(true) <= 3 * len(scene.objects)
        text = " ".join(scene.captions(6))
        if len(scene.objects) == 2 and scene.objects[0].size != scene.objects[1].size:
            small = {phrase for phrase in phrases if "small" in phrase}
            assert {phrase for phrase in small if f"{phrase} " in text} == small & true


def test_pretraining_is_deterministic_and_makes_models_like_the_shipped_ones(tmp_path: Path):
    for name in ("one", "two"):
        made = pretrain_backbones(tmp_path / name, **SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(path.relative_to(SCENE_BACKBONES) for path in SCENE_BACKBONES.rglob("*.*"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    shipped = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    ours, theirs = (ITuningForCaptioning.from_vision_text_pretrained(*parts) for parts in (made, shipped))
    different = {"_name_or_path", "vocab_size"}  # fewer scenes have fewer words
    for kind in ("vision_config", "text_config"):
        mine, expected = (getattr(model.config, kind).to_dict() for model in (ours, theirs))
        assert mine.keys() == expected.keys()
        assert {name for name in mine if mine[name] != expected[name]} <= different
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True) == 132_352
    assert len(ITuningProcessor.from_vision_text_pretrained(*shipped).tokenizer) == 405
