"""Captions of scenes against the truth."""

import pytest

from ituning_hf.demo.scoring import Scores, named_objects, score_captions

TRUTH = "a small red star above a large blue heart."


@pytest.mark.parametrize(
    ("caption", "objects", "everything"),
    [
        (TRUTH, 1, 1),
        ("a large blue heart above a small red star.", 1, 0),  # the wrong way round
        ("a large red star above a small blue heart.", 1, 0),  # the wrong sizes
        ("a small red heart above a large blue star.", 0, 0),  # the right words, wrongly joined
        ("a small red star above a large red star.", 0, 0),  # one object twice
        ("a small red star.", 0, 0),
        (TRUTH + TRUTH, 0, 0),  # it never stopped
        ("", 0, 0),
    ],
)
def test_a_captions_score(caption: str, objects: int, everything: int):
    assert score_captions([caption], [TRUTH]) == Scores(objects, everything)


def test_scores_are_shares_of_captions():
    said = [TRUTH, "a large red star above a small blue heart.", "a dog.", "two dogs."]
    assert score_captions(said, [TRUTH] * 4) == Scores(objects=0.5, everything=0.25)


def test_two_objects_of_one_kind_must_both_be_named():
    truth = "a small red star above a large red star."
    assert named_objects(truth) == [("red", "star"), ("red", "star")]
    assert score_captions(["a red star."], [truth]).objects == 0


def test_captions_without_a_truth_are_refused():
    with pytest.raises(ValueError, match="zip"):
        score_captions(["a dog."], [])
