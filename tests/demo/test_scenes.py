"""The demo's scenes, the pairs withheld from the adapters, and how captions are scored."""

from collections import Counter

import pytest

from ituning_hf.data.columns import CaptionedImage
from ituning_hf.data.scenes import COLOURS, SHAPES, Scene, make_scene
from ituning_hf.demo.scenes import UNSEEN_PAIRS, CaptionedScene, Scores, compose_scenes, score

TRUTH = "a small red star above a large blue heart."
TWO_STARS = "a small red star above a large red star."


@pytest.fixture(scope="module")
def scenes():
    return compose_scenes(seed=3, num_train=500, num_validation=20, num_test=60)


def drawn(record: CaptionedImage, seed: int = 3) -> Scene:
    return make_scene(seed, int(record.name.removeprefix("scene-")))


def pairs(record: CaptionedImage) -> set[tuple[str, str]]:
    return {(item.colour, item.shape) for item in drawn(record).objects}


def test_each_colour_is_withheld_once_and_no_shape_more_than_twice():
    assert len(UNSEEN_PAIRS) == 8
    assert {colour for colour, _ in UNSEEN_PAIRS} == set(COLOURS)
    shapes = Counter(shape for _, shape in UNSEEN_PAIRS)
    assert set(shapes) == set(SHAPES)
    assert max(shapes.values()) == 2


def test_withheld_pairs_are_in_every_unseen_scene_and_in_no_other(scenes):
    for part in (scenes.train, scenes.validation, scenes.held_out):
        assert not any(pairs(record) & UNSEEN_PAIRS for record in part)
    assert all(pairs(record) & UNSEEN_PAIRS for record in scenes.unseen)
    trained = set().union(*(pairs(record) for record in scenes.train))
    assert len(trained) == 48 - 8


def test_parts_share_no_scene_and_every_scene_has_two_objects(scenes):
    parts = (scenes.train, scenes.validation, scenes.held_out, scenes.unseen)
    assert [len(part) for part in parts] == [500, 20, 60, 60]
    names = [record.name for part in parts for record in part]
    assert len(set(names)) == len(names)
    assert all(len(drawn(record).objects) == 2 for part in parts for record in part)


def test_scenes_are_a_function_of_the_seed():
    one, again, other = (compose_scenes(seed, 30, 3, 5) for seed in (1, 1, 2))
    assert [*one.train, *one.unseen] == [*again.train, *again.unseen]
    assert not {r.source for r in one.train} & {r.source for r in other.train}


def test_captions_are_one_sentence_with_the_left_or_upper_object_first(scenes):
    for record in scenes.train[:100]:
        (sentence,) = record.captions
        relation = "left of" if "left of" in sentence else "above"
        first, second = sentence.rstrip(".").split(f" {relation} ")
        axis = "x" if relation == "left of" else "y"
        before, after = sorted(drawn(record).objects, key=lambda item: getattr(item, axis))
        assert first.endswith(f"{before.colour} {before.shape}")
        assert second.endswith(f"{after.colour} {after.shape}")


@pytest.mark.parametrize(
    ("truth", "caption", "verdict"),
    [
        (TRUTH, TRUTH, "right"),
        (TRUTH, "a large blue heart above a small red star.", "objects right"),  # wrong order
        (TRUTH, "a large red star above a small blue heart.", "objects right"),  # wrong sizes
        (TRUTH, "a small red heart above a large blue star.", "wrong"),  # right words, wrong pairs
        (TRUTH, TWO_STARS, "wrong"),
        (TRUTH, "a small red star.", "wrong"),
        (TRUTH, TRUTH + TRUTH, "wrong"),  # no end token
        (TRUTH, "", "wrong"),
        (TWO_STARS, "a large red star above a red star.", "objects right"),
        (TWO_STARS, "a red star.", "wrong"),
    ],
)
def test_verdict_of_a_caption(truth: str, caption: str, verdict: str):
    assert CaptionedScene("scene", truth, caption).verdict == verdict


def test_scores_are_shares_of_captions():
    captions = [TRUTH, "a large red star above a small blue heart.", "a dog.", "two dogs."]
    scenes = [CaptionedScene("scene", TRUTH, caption) for caption in captions]
    assert score(scenes) == Scores(objects=0.5, everything=0.25)
