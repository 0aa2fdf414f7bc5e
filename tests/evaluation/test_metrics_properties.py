"""The caption metrics of any captions: their range, and what must not matter to them."""

import math
import random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from properties import examples

from ituning_hf.evaluation.metrics import compute_caption_metrics, score_captions

WORDS = st.sampled_from(
    ["a", "the", "dog", "dogs", "cat", "runs", "sits", "on", "grass", "red", "bike", "two"]
)
SENTENCES = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)
IMAGES = st.lists(
    st.tuples(st.just("") | SENTENCES, st.lists(SENTENCES, min_size=1, max_size=4)), min_size=1, max_size=5
)
TEXTS = st.text(max_size=12)
LARGEST = {"cider": 10.0}


def score(images: list[tuple[str, list[str]]]) -> dict[str, float]:
    return compute_caption_metrics([caption for caption, _ in images], [r for _, r in images], java=False)


@given(images=st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))))
@example(images=[("\ud800 dog", ["a dog\u2028", "\x00"])])
@examples(30, 1000)
def test_scores_of_any_text_are_in_their_range(images: list[tuple[str, list[str]]]):
    try:
        scores = score(images)
    except ValueError as error:
        assert "hold no word" in str(error) or "no prediction to score" in str(error)  # noqa: PT017
        return
    for name, value in scores.items():
        assert 0 <= value <= LARGEST.get(name, 1) + 1e-9, name


@given(images=IMAGES, seed=st.integers(0, 99))
@examples(30, 1000)
def test_no_order_matters(images: list[tuple[str, list[str]]], seed: int):
    rng = random.Random(seed)
    shuffled = [(caption, rng.sample(references, len(references))) for caption, references in images]
    rng.shuffle(shuffled)
    assert score(shuffled) == pytest.approx(score(images), abs=1e-9)


@given(images=IMAGES, times=st.integers(2, 3))
@examples(30, 1000)
def test_images_that_come_several_times_change_nothing(images: list[tuple[str, list[str]]], times: int):
    once, again = score(images), score(images * times)
    once.pop("cider")  # a word that no reference has counts for one document, of any number
    # Where nothing matches, the official formula of BLEU counts 1e-15 n-grams, of any number of images.
    assert {name: again[name] for name in once} == pytest.approx(once, abs=1e-3)


@given(IMAGES.map(lambda images: [captions for _, captions in images]), st.data())
@examples(30, 1000)
def test_a_caption_that_a_person_wrote_has_full_marks(references: list[list[str]], data: st.DataObject):
    images = [(data.draw(st.sampled_from(captions)), captions) for captions in references]
    scores = score(images)
    longest = max(len(caption.split()) for caption, _ in images)
    for n in range(1, min(longest, 4) + 1):
        assert scores[f"bleu_{n}"] == pytest.approx(1, abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(1)


@given(images=IMAGES)
@examples(30, 1000)
def test_the_scores_of_each_image_make_those_of_all(images: list[tuple[str, list[str]]]):
    assume(len(images) > 1)
    scores = score_captions([caption for caption, _ in images], [r for _, r in images], java=False)
    for name in ("rouge_l", "cider"):
        assert math.fsum(scores.per_image[name]) / len(images) == pytest.approx(scores.metrics[name])
    assert scores.subset(range(len(images))) == pytest.approx(scores.metrics, abs=1e-9)
    backwards = range(len(images) - 1, -1, -1)
    assert scores.subset(backwards) == pytest.approx(scores.metrics, abs=1e-9)
