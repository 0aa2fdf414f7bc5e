"""What the demo's scenes show, and what is kept from the adapter."""

from collections import Counter

import pytest

from ituning_hf.data.scenes import COLOURS, SHAPES, Scene, make_scene
from ituning_hf.demo.pretraining import SERIES, all_phrases, true_phrases
from ituning_hf.demo.scenes import UNSEEN_PAIRS, compose_scenes, has_unseen_pair


@pytest.fixture(scope="module")
def scenes():
    return compose_scenes(seed=3, num_train=500, num_validation=20, num_test=60)


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(item.colour, item.shape) for item in scene.objects}


def test_eight_of_forty_eight_pairs_are_withheld_each_colour_once_and_no_shape_wholly():
    assert len(UNSEEN_PAIRS) == 8
    assert {colour for colour, _ in UNSEEN_PAIRS} == set(COLOURS)
    shapes = Counter(shape for _, shape in UNSEEN_PAIRS)
    assert set(shapes) == set(SHAPES)
    assert max(shapes.values()) == 2


def test_withheld_pairs_are_in_the_unseen_scenes_and_nowhere_else(scenes):
    for part in (scenes.train, scenes.validation, scenes.held_out):
        assert not any(pairs(record.source) & UNSEEN_PAIRS for record in part)
    assert all(pairs(record.source) & UNSEEN_PAIRS for record in scenes.unseen)
    assert all(has_unseen_pair(record.source) for record in scenes.unseen)


def test_every_other_pair_is_trained_on(scenes):
    seen = set().union(*(pairs(record.source) for record in scenes.train))
    assert len(seen) == 48 - 8


def test_no_scene_is_in_two_parts_and_all_have_two_objects(scenes):
    parts = (scenes.train, scenes.validation, scenes.held_out, scenes.unseen)
    assert [len(part) for part in parts] == [500, 20, 60, 60]
    names = [record.name for part in parts for record in part]
    assert len(set(names)) == len(names)
    assert all(len(record.source.objects) == 2 for part in parts for record in part)


def test_the_same_seed_gives_the_same_scenes_and_another_others():
    one, again, other = (compose_scenes(seed, 30, 3, 5) for seed in (1, 1, 2))
    assert one == again
    assert not {r.source for r in one.train} & {r.source for r in other.train}


def test_a_caption_is_one_sentence_with_the_left_or_upper_object_first(scenes):
    for record in scenes.train[:100]:
        (sentence,) = record.captions
        relation = "left of" if "left of" in sentence else "above"
        first, second = sentence.rstrip(".").split(f" {relation} ")
        along = "x" if relation == "left of" else "y"
        before, after = sorted(record.source.objects, key=lambda item: getattr(item, along))
        assert first.endswith(f"{before.colour} {before.shape}")
        assert second.endswith(f"{after.colour} {after.shape}")


def test_the_true_phrases_of_a_scene_are_read_off_its_captions():
    """The grammar's own sentences say each of them, for scenes where size and place are spoken of."""
    phrases = {phrase for group in all_phrases() for phrase in group}
    assert len(phrases) == 48 + 96 + 5 * 48
    for index in range(300):
        scene = make_scene(SERIES, index)
        true = true_phrases(scene)
        assert true <= phrases
        assert len(true) <= 3 * len(scene.objects)
        text = " ".join(scene.captions(6))
        if len(scene.objects) == 2 and scene.objects[0].size != scene.objects[1].size:
            assert {phrase for phrase in phrases if f"{phrase} " in text and "small" in phrase} == {
                phrase for phrase in true if "small" in phrase
            }
