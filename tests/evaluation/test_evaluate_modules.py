"""The modules for Hugging Face's `evaluate`: loaded by path, alone and combined, in a fresh home."""

import os
from pathlib import Path

import pytest
from fresh_process import run_fresh
from PIL import Image
from small_models import save_full_clip

from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.modules import metric_path

PREDICTIONS = ["a dog runs", "two cats sleep", "a man"]
REFERENCES = [
    ["a dog runs on grass", "A running dog."],
    ["Two cats are asleep."],
    ["A man", "the man.", "He"],
]
DATA = f"predictions, references = {PREDICTIONS!r}, {REFERENCES!r}\n"
SCRIPT = f"""
import json
import evaluate
from ituning_hf.evaluation import metric_path

{DATA}
one = evaluate.load(metric_path("rouge_l"))
for prediction, captions in zip(predictions, references):
    one.add(prediction=prediction, reference=captions)
both = evaluate.combine([metric_path("bleu"), metric_path("cider")])
found = one.compute(java=False) | both.compute(predictions=predictions, references=references, java=False)
for name in ("meteor", "spice"):
    metric = evaluate.load(metric_path(name))
    try:
        metric.compute(predictions=predictions, references=references, java=False)
    except RuntimeError as error:
        found[name] = str(error)
found["names"] = [metric.name for metric in both.evaluation_modules]
found["described"] = one.description
"""
CLIP_SCRIPT = f"""
import json
import evaluate
from ituning_hf.evaluation import metric_path

{DATA}
metric = evaluate.load(metric_path("clip_score"), {{clip!r}})
found = metric.compute(predictions=predictions, references=references, images={{paths}})
"""


def test_modules_agree_with_the_scores_in_a_fresh_home_offline(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "home").mkdir()
    found = run_fresh(SCRIPT, tmp_path, hide=False, environment=environment)
    expected = score_captions(PREDICTIONS, REFERENCES, java=False)
    assert {name: found[name] for name in expected.metrics} == expected.metrics
    assert {name: found[name] for name in expected.left_out} == expected.left_out
    assert found["names"] == ["bleu", "cider"]
    assert found["described"].startswith("ROUGE-L by the official scorer")


def test_clip_score_module(tmp_path: Path):
    clip = save_full_clip(tmp_path / "clip")
    paths = [str(tmp_path / f"{colour}.png") for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (40, 30), Path(path).stem).save(path)
    script = CLIP_SCRIPT.format(clip=str(clip), paths=paths)
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    found = run_fresh(script, tmp_path, hide=False, environment=environment)
    values = clip_scores(clip, paths, PREDICTIONS, REFERENCES)
    assert found == {name: pytest.approx(sum(of) / 3) for name, of in values.items()}


def test_every_metric_has_its_module():
    for name in ("bleu", "cider", "clip_score", "meteor", "rouge_l", "spice"):
        script = Path(metric_path(name)) / f"{name}.py"
        assert script.is_file()
    with pytest.raises(
        ValueError, match=r"no metric 'rouge'; expected one of \['bleu', 'cider', 'clip_score'"
    ):
        metric_path("rouge")
