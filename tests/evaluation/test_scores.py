"""Scores of each image and of parts, and confidence intervals, against hand-computed and official values."""

import math
import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.evaluation.scores import CaptionScores, meteor_from_counts, read_meteor_counts

WORDS = "a the dog cat man runs sits on grass red blue two".split()  # noqa: SIM905
# The output of METEOR 1.5 for four pairs; and its EVAL output, for each pair and for all together.
METEOR_SAYS = [
    "6.0 6.0 2.0 2.0 1.0 1.0 1.0 1.0 2.0 2.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0 1.0 1.0 6.0 6.0",
    "7.0 6.0 3.0 4.0 1.0 1.0 3.0 3.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 4.0 4.0 4.0",
    "0.0 6.0 0.0 4.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0",
    "1.0 1.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0",
]
METEOR_SCORES, METEOR_TOGETHER = [0.7142857142857142, 0.22325581395348837, 0.0, 1.0], 0.2672579256490067


def random_captions(num_images: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Captions, some empty, and one to five references of other lengths."""
    dice = random.Random(seed)

    def caption(least: int) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(least, 11)))

    references = [[caption(1) for _ in range(dice.randint(1, 5))] for _ in range(num_images)]
    return [caption(0) for _ in range(num_images)], references


@pytest.fixture(scope="module")
def captions() -> tuple[list[str], list[list[str]]]:
    return random_captions(37)


@pytest.fixture(scope="module")
def scores(captions: tuple[list[str], list[list[str]]]) -> CaptionScores:
    return score_captions(*captions, java=False)


def test_values_agree_with_the_official_scorers(captions, scores: CaptionScores):
    predictions = {image: [caption] for image, caption in enumerate(captions[0])}
    references = dict(enumerate(captions[1]))
    of_set, bleu = Bleu(4).compute_score(references, predictions, verbose=0)
    expected = {f"bleu_{n}": values for n, values in enumerate(bleu, start=1)}
    rouge_l, expected["rouge_l"] = Rouge().compute_score(references, predictions)
    cider, expected["cider"] = Cider().compute_score(references, predictions)
    assert scores.per_image == {name: list(values) for name, values in expected.items()}
    assert list(scores.metrics) == list(expected)
    assert [*scores.metrics.values()] == pytest.approx([*of_set, rouge_l, cider], abs=1e-12)
    assert (scores.num_images, scores.tokenizer, scores.java_version) == (37, "Python", None)
    assert scores.left_out == {
        "meteor": "METEOR is left out: it needs Java, and Java was turned off.",
        "spice": "SPICE is left out: it needs Java, and Java was turned off.",
    }
    assert all(type(value) is float for values in scores.per_image.values() for value in values)


def test_hand_computed_values():
    # 3 words of 6, all correct; 1 of 2 words correct, no pair; the correct words twice
    scores = score_captions(
        ["the cat sat", "a dog", "red red"],
        [["the cat sat on a mat"], ["the dog"], ["red car", "a red red hat"]],
        java=False,
    )
    assert scores.per_image["bleu_1"] == pytest.approx([math.exp(1 - 6 / 3), 0.5, 1], abs=1e-8)
    assert scores.per_image["bleu_2"] == pytest.approx([math.exp(1 - 6 / 3), 0, 1], abs=1e-6)
    # precision and recall: 1, 1/2; 1/2, 1/2; and the best of each, 1 and 1/2
    assert scores.per_image["rouge_l"] == pytest.approx([1.22 / 1.94, 0.5, 1.22 / 1.94])
    # matched, all n-grams, words, and those of the nearest reference, of two the shorter
    assert scores.counts["bleu"].tolist() == [
        [3, 2, 1, 0, 3, 2, 1, 0, 3, 6],
        [1, 0, 0, 0, 2, 1, 0, 0, 2, 2],
        [2, 1, 0, 0, 2, 1, 0, 0, 2, 2],
    ]
    # 6 of 7 words; 7 words where the references have 10
    assert scores.metrics["bleu_1"] == pytest.approx(6 / 7 * math.exp(1 - 10 / 7))


def test_a_part_has_its_own_bleu_and_the_document_frequencies_of_the_set(captions, scores: CaptionScores):
    indices = [1, 2, 3, 5, 8, 13, 21, 34]
    part = scores.part(indices)
    alone = score_captions([captions[0][i] for i in indices], [captions[1][i] for i in indices], java=False)
    assert (part.num_images, list(part.metrics)) == (8, list(scores.metrics))
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert part.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-12)
    assert part.per_image["cider"] == [scores.per_image["cider"][i] for i in indices]
    assert abs(part.metrics["cider"] - alone.metrics["cider"]) > 0.01
    assert part.part([2, 5]).metrics == pytest.approx(scores.part([3, 13]).metrics, abs=1e-12)
    domains = [range(5), range(5, 30), range(30, 37)]  # the weighted mean, as for published NoCaps values
    total = sum(len(domain) * scores.part(domain).metrics["cider"] for domain in domains)
    assert total / 37 == pytest.approx(scores.metrics["cider"], abs=1e-12)


def test_intervals_agree_with_a_naive_bootstrap(captions, scores: CaptionScores):
    generator = np.random.default_rng(5)
    found = []
    for _ in range(23):
        drawn = generator.integers(37, size=37)
        again = score_captions([captions[0][i] for i in drawn], [captions[1][i] for i in drawn], java=False)
        values = again.metrics | {"cider": np.mean([scores.per_image["cider"][i] for i in drawn])}
        found.append([*values.values()])
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    intervals = scores.bootstrap(num_resamples=23, seed=5)
    assert list(intervals) == list(scores.metrics)
    assert np.array([*intervals.values()]) == pytest.approx(np.stack([low, high], axis=1), abs=1e-12)


def test_intervals_contain_the_value_and_shrink_with_more_images(scores: CaptionScores):
    intervals = scores.intervals
    assert intervals == scores.bootstrap()
    assert intervals != scores.bootstrap(seed=1)
    assert all(low < scores.metrics[name] < high for name, (low, high) in intervals.items())
    more = score_captions(*random_captions(37 * 9, seed=1), java=False).intervals
    low, high = intervals["rouge_l"]
    assert more["rouge_l"][1] - more["rouge_l"][0] == pytest.approx((high - low) / 3, rel=0.3)


def test_meteor_of_images_parts_and_resamples_agrees_with_its_program():
    counts = read_meteor_counts(METEOR_SAYS)
    assert meteor_from_counts(counts).tolist() == pytest.approx(METEOR_SCORES, abs=1e-12)
    assert float(meteor_from_counts(counts.sum(0))) == pytest.approx(METEOR_TOGETHER, abs=1e-12)
    scores = CaptionScores(
        per_image={"meteor": METEOR_SCORES},
        counts={"meteor": counts},
        tokenizer="",
        java_version=8,
        left_out={},
    )
    assert scores.part(range(4)).metrics == {"meteor": pytest.approx(METEOR_TOGETHER, abs=1e-12)}
    assert scores.part([1, 3]).metrics == {"meteor": pytest.approx(0.2789597455370037, abs=1e-12)}  # by EVAL
    low, high = scores.bootstrap(num_resamples=50)["meteor"]
    assert 0 <= low < METEOR_TOGETHER < high <= 1
