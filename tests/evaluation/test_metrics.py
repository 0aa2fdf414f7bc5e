"""Caption metrics: hand-computed values, the official values, properties, and bad input."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples
from small_models import SHARED_DATA

from ituning_hf.evaluation import metrics
from ituning_hf.evaluation.java import find_java
from ituning_hf.evaluation.metrics import compute_caption_metrics, score_captions
from ituning_hf.utils.errors import UserError

BIKE, DOGS = "a man rides a red bike", "two dogs sleep on the grass"
PYTHON_METRICS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
WORDS = st.sampled_from("a the dog dogs cat runs sits on grass red bike two".split())  # noqa: SIM905
SENTENCES = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)
IMAGES = st.lists(
    st.tuples(st.just("") | SENTENCES, st.lists(SENTENCES, min_size=1, max_size=4)), min_size=1, max_size=5
)
TEXTS = st.text(max_size=12)


def score(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    return compute_caption_metrics(predictions, references, java=False)


def test_the_references_themselves_get_the_highest_scores(capfd: pytest.CaptureFixture[str]):
    scores = score([BIKE, DOGS], [["another man", BIKE], [DOGS]])
    assert list(scores) == PYTHON_METRICS
    assert scores["bleu_4"] == pytest.approx(1, abs=1e-9)
    assert scores["rouge_l"] == 1
    assert score([BIKE, DOGS], [[BIKE], [DOGS]])["cider"] == pytest.approx(10)
    assert all(type(value) is float for value in scores.values())
    assert capfd.readouterr() == ("", "")


def test_an_empty_caption_scores_0():
    scores = score(["", DOGS], [[BIKE], [DOGS]])
    assert scores["bleu_1"] == pytest.approx(math.exp(-1), abs=1e-9)  # 6 words of 12
    assert scores["rouge_l"] == 0.5
    assert scores["cider"] == pytest.approx(5)
    assert score(["", "..."], [[BIKE], [DOGS]]) == dict.fromkeys(PYTHON_METRICS, 0.0)
    assert score([BIKE], [[BIKE]])["cider"] == 0  # with one image no word is rare


def test_case_punctuation_and_line_breaks_are_ignored_in_any_script():
    plain = score([BIKE, DOGS], [[BIKE], [DOGS]])
    noisy = score(["A man\nrides a RED bike .", DOGS], [[BIKE], ["Two dogs,\r\nsleep on the grass\n"]])
    assert noisy == plain
    captions = ["一只 狗 在 草地 上", "собака бежит по траве быстро", "un café près de l'eau 🙂"]
    assert score(captions, [[caption] for caption in captions])["cider"] == pytest.approx(10)


@given(images=st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1))
@example(images=[("\ud800 dog", ["a dog\u2028", "\x00"])])
@examples(20, 1000)
def test_scores_of_any_text_are_in_their_range(images: list[tuple[str, list[str]]]):
    predictions, references = map(list, zip(*images, strict=True))
    try:
        scores = score(predictions, references)
    except UserError as error:
        assert "contain no word" in str(error)  # noqa: PT017
        return
    for name, value in scores.items():
        assert 0 <= value <= {"cider": 10}.get(name, 1) + 1e-9, name


@given(images=IMAGES, seed=st.integers(0, 99))
@examples(20, 1000)
def test_order_and_repetition_of_images(images: list[tuple[str, list[str]]], seed: int):
    dice = random.Random(seed)
    predictions, references = map(list, zip(*images, strict=True))
    scores = score(predictions, references)
    shuffled = [(caption, dice.sample(own, len(own))) for caption, own in images]
    dice.shuffle(shuffled)
    assert score(*map(list, zip(*shuffled, strict=True))) == pytest.approx(scores, abs=1e-9)
    twice = score(predictions * 2, references * 2)
    for name in set(scores) - {"cider"}:  # CIDEr of a word that no reference has depends on their number
        # The official BLEU formula adds 1e-15 to the matches, for any number of images.
        assert twice[name] == pytest.approx(scores[name], abs=1e-3)


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], UserError, "at least one image"),
        (["a"], [["a"], ["b"]], UserError, "1 predictions and references for 2 images"),
        (["a", "b"], [["a"], []], UserError, r"references\[1\] is empty"),
        (["a"], [["."]], UserError, "contain no word"),
        ("a", [["a"]], TypeError, "got one string"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of strings, got 'a'"),
        ([None], [["a"]], TypeError, r"predictions\[0\] must be a string, got None"),
        (["a"], [["a", 3]], TypeError, r"references\[0\] must be a list of strings, got \['a', 3\]"),
    ],
)
def test_bad_input_is_refused(predictions: Any, references: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        score(predictions, references)


def test_one_metric_alone():
    predictions, references = [BIKE, "dogs asleep"], [[BIKE], [DOGS]]
    everything = score([BIKE, "dogs asleep"], references)
    for name in ("rouge_l", "cider"):
        alone = score_captions(predictions, references, java=False, only=name)
        assert alone.metrics == {name: everything[name]}
    with pytest.raises(UserError, match="METEOR is left out: it needs Java"):
        score_captions(predictions, references, java=False, only="meteor")


def test_missing_scorers_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ituning_hf\[eval\]'"):
        score([BIKE], [[BIKE]])


@pytest.mark.parametrize(
    ("java", "tolerance"),
    [(False, 1e-3), pytest.param(True, 1e-6, marks=pytest.mark.slow)],  # METEOR alone takes a minute
)
def test_agreement_with_the_official_scores(java: bool, tolerance: float):
    folder = SHARED_DATA / "caption-metrics"
    if not folder.is_dir():
        pytest.skip(f"no captions with official scores at {folder}")
    if java and find_java() is None:
        pytest.skip("no Java on the PATH to run the official tokenizer and METEOR")
    references: dict[int, list[str]] = {}
    for item in json.loads((folder / "f8k_human_refs.json").read_text())["annotations"]:
        references.setdefault(item["image_id"], []).append(item["caption"])
    results = json.loads((folder / "f8k_human_results.json").read_text())
    predictions = {item["image_id"]: item["caption"] for item in results}
    official = json.loads((folder / "official_scores.json").read_text())
    expected = {name.lower(): value for name, value in official.items()}
    ours = compute_caption_metrics([predictions[i] for i in references], list(references.values()), java)
    assert list(ours) == [*PYTHON_METRICS, *(["meteor"] if java else [])]
    for name, value in ours.items():
        print(f"java={java} {name} {value:.6f}, apart {abs(value - expected[name]):.1e}")  # noqa: T201
        assert value == pytest.approx(expected[name], abs=tolerance)
