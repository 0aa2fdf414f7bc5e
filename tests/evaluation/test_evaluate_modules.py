"""The modules for Hugging Face's `evaluate`: loaded by path, alone and combined, from an empty cache."""

from pathlib import Path

import evaluate
import pytest
from evaluate import loading
from PIL import Image
from small_models import save_full_clip

from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.modules import metric_path
from ituning_hf.utils.errors import UserError

PREDICTIONS = ["a dog runs", "two cats sleep", "a man"]
REFERENCES = [
    ["a dog runs on grass", "A running dog."],
    ["Two cats are asleep."],
    ["A man", "the man.", "He"],
]
DATA = {"predictions": PREDICTIONS, "references": REFERENCES}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that loads a metric by name, with an empty cache for its module and its data."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = tmp_path / f"modules_of_{tmp_path.name}"  # a package of its own for each test
    modules.mkdir()
    (modules / "__init__.py").touch()
    monkeypatch.setattr(loading, "init_dynamic_modules", lambda: str(modules))

    def load_metric(name: str, *config: str) -> evaluate.EvaluationModule:
        return evaluate.load(metric_path(name), *config, cache_dir=str(tmp_path / "data"))

    return load_metric


def test_modules_agree_with_the_scores(load):
    metric = load("rouge_l")
    for prediction, captions in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=captions)
    both = evaluate.combine([load("bleu"), load("cider")])
    expected = score_captions(PREDICTIONS, REFERENCES, java=False)
    assert metric.compute(java=False) | both.compute(**DATA, java=False) == expected.metrics
    assert [module.name for module in both.evaluation_modules] == ["bleu", "cider"]
    assert metric.description.startswith("ROUGE-L by the official scorer")
    for name in ("meteor", "spice"):
        with pytest.raises(UserError, match=f"{name.upper()} is left out: it needs Java"):
            load(name).compute(**DATA, java=False)


def test_clip_score_module(load, tmp_path: Path):
    clip = save_full_clip(tmp_path / "clip")
    paths = [str(tmp_path / f"{colour}.png") for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (40, 30), Path(path).stem).save(path)
    values = clip_scores(clip, paths, PREDICTIONS, REFERENCES)
    expected = {name: pytest.approx(sum(of) / 3) for name, of in values.items()}
    assert load("clip_score", str(clip)).compute(**DATA, images=paths) == expected


def test_unknown_metric():
    with pytest.raises(UserError, match="no metric 'rouge', expected one of bleu, cider"):
        metric_path("rouge")
