"""Caption metrics: values worked out by hand, the official ones, and what is refused."""

import doctest
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from small_models import SHARED_DATA

from ituning_hf.evaluation import metrics
from ituning_hf.evaluation.java import find_java
from ituning_hf.evaluation.metrics import compute_caption_metrics

BIKE, DOGS = "a man rides a red bike", "two dogs sleep on the grass"
PYTHON_METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]


def score(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    return compute_caption_metrics(predictions, references, java=False)


def test_the_references_themselves_score_full_marks():
    scores = score([BIKE, DOGS], [["another man", BIKE], [DOGS]])
    assert list(scores) == PYTHON_METRICS
    assert scores["bleu_4"] == pytest.approx(1, abs=1e-9)
    assert scores["rouge_l"] == 1
    assert score([BIKE, DOGS], [[BIKE], [DOGS]])["cider"] == pytest.approx(10)
    assert all(type(value) is float for value in scores.values())


def test_a_short_caption_is_penalized():
    scores = score(["the cat sat", DOGS], [["the cat sat on a mat"], [DOGS]])
    # 9 words of 12, all of them right
    for n in range(1, 5):
        assert scores[f"bleu_{n}"] == pytest.approx(math.exp(1 - 12 / 9), abs=1e-9)
    # precision 1, recall 1/2, beta 1.2; and full marks for the other image
    assert scores["rouge_l"] == pytest.approx((2.44 * 0.5 / (0.5 + 1.44) + 1) / 2)


def test_unigram_precision_counts_a_word_as_often_as_a_reference_has_it():
    scores = score(["the the the the the the the"], [["the cat is on the mat"]])
    assert scores["bleu_1"] == pytest.approx(2 / 7, abs=1e-9)


def test_an_empty_caption_scores_nothing():
    scores = score(["", DOGS], [[BIKE], [DOGS]])
    assert scores["bleu_1"] == pytest.approx(math.exp(-1), abs=1e-9)  # 6 words of 12
    assert scores["rouge_l"] == 0.5
    assert scores["cider"] == pytest.approx(5)
    assert score(["", "..."], [[BIKE], [DOGS]]) == dict.fromkeys(PYTHON_METRICS, 0.0)


def test_one_image_has_no_cider():
    assert score([BIKE], [[BIKE]])["cider"] == 0


def test_case_punctuation_and_line_breaks_do_not_count():
    plain = score([BIKE, DOGS], [[BIKE], [DOGS]])
    assert (
        score(["A man\nrides a RED bike .", DOGS], [[BIKE], ["Two dogs,\r\nsleep on the grass\n"]]) == plain
    )


def test_any_script_is_scored():
    captions = ["一只 狗 在 草地 上", "собака бежит по траве быстро", "un café près de l'eau 🙂"]
    assert score(captions, [[caption] for caption in captions])["cider"] == pytest.approx(10)


def test_the_order_of_images_and_references_does_not_matter():
    predictions = ["a man on a bike", "dogs asleep", "a red bike", "the grass is green"]
    references = [[BIKE, "man on bike"], [DOGS, "two sleepy dogs"], ["a bike"], ["green grass"]]
    backwards = score(predictions[::-1], [captions[::-1] for captions in references[::-1]])
    assert backwards == pytest.approx(score(predictions, references), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], ValueError, "no prediction to score"),
        (["a"], [["a"], ["b"]], ValueError, "1 predictions and references for 2 images"),
        (["a", "b"], [["a"], []], ValueError, r"references\[1\] is empty"),
        (["a"], [["."]], ValueError, "hold no word"),
        ("a", [["a"]], TypeError, "got one string"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of strings, got the string 'a'"),
        ([None], [["a"]], TypeError, r"predictions\[0\] must be a string, got None"),
        (["a"], [["a", 3]], TypeError, r"references\[0\] must hold strings only, got 3"),
    ],
)
def test_bad_input_is_refused(predictions: Any, references: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        score(predictions, references)


def test_missing_scorers_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu_scorer", None)
    with pytest.raises(ImportError, match=r"pip install 'ituning_hf\[eval\]'"):
        score([BIKE], [[BIKE]])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    score([BIKE], [[BIKE]])
    assert capfd.readouterr() == ("", "")


def test_docstring_example_runs():
    results = doctest.testmod(metrics)
    assert (results.attempted, results.failed) == (5, 0)


@pytest.fixture
def agreement() -> Callable[[bool], dict[str, tuple[float, float]]]:
    """Scores the human captions at hand; returns (ours, official) of each metric."""
    folder = SHARED_DATA / "caption-metrics"
    if not folder.is_dir():
        pytest.skip(f"no captions with official scores at {folder}")
    references: dict[int, list[str]] = {}
    for item in json.loads((folder / "f8k_human_refs.json").read_text())["annotations"]:
        references.setdefault(item["image_id"], []).append(item["caption"])
    results = json.loads((folder / "f8k_human_results.json").read_text())
    predictions = {item["image_id"]: item["caption"] for item in results}
    official = json.loads((folder / "official_scores.json").read_text())

    def compare(java: bool) -> dict[str, tuple[float, float]]:
        ours = compute_caption_metrics([predictions[i] for i in references], list(references.values()), java)
        expected = {name.lower(): value for name, value in official.items()}
        pairs = {name: (value, expected[name]) for name, value in ours.items()}
        for name, (value, target) in pairs.items():
            apart = abs(value - target)
            print(f"java={java} {name} {value:.6f}, official {target:.6f}, apart {apart:.1e}")  # noqa: T201
        return pairs

    return compare


def test_agreement_with_the_official_scores_without_java(agreement):
    pairs = agreement(False)
    assert list(pairs) == PYTHON_METRICS
    for ours, official in pairs.values():
        assert ours == pytest.approx(official, abs=1e-3)


@pytest.mark.slow  # METEOR alone takes a minute where the processor is busy
def test_agreement_with_the_official_scores_with_java(agreement):
    if find_java() is None:
        pytest.skip("no Java on the PATH to run the official tokenizer and METEOR")
    pairs = agreement(True)
    assert list(pairs) == [*PYTHON_METRICS, "meteor"]
    for ours, official in pairs.values():
        assert ours == pytest.approx(official, abs=1e-6)
