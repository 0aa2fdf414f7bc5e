import re

import pytest

from ituning_hf.data.scenes import Scene, SceneObject, make_scene

RED_CIRCLE = ("circle", "red", "small")
ORANGE_STAR = ("star", "orange", "small")
BIG_HEART = ("heart", "blue", "large")


def scene(*objects: tuple[tuple[str, str, str], float, float]) -> Scene:
    return Scene(tuple(SceneObject(*kind, x, y) for kind, x, y in objects), "grey")


def test_side_by_side_without_sizes() -> None:
    # given right to left: the order of mention is that of the picture
    assert scene((ORANGE_STAR, 0.8, 0.5), (RED_CIRCLE, 0.2, 0.6)).captions(6) == (
        "a red circle left of an orange star.",
        "a red circle on the left and an orange star on the right.",
        "an orange star right of a red circle.",
        "a red circle and an orange star on a grey background.",
        "there is a red circle left of an orange star.",
        "two shapes: a red circle and an orange star.",
    )


def test_one_above_the_other_with_sizes() -> None:
    assert scene((BIG_HEART, 0.5, 0.75), (ORANGE_STAR, 0.6, 0.2)).captions(6) == (
        "a small orange star above a large blue heart.",
        "a small orange star at the top and a large blue heart at the bottom.",
        "a large blue heart below a small orange star.",
        "a small orange star and a large blue heart on a grey background.",
        "there is a small orange star above a large blue heart.",
        "two shapes: a small orange star and a large blue heart.",
    )


def test_two_above_one() -> None:
    objects = [(BIG_HEART, 0.5, 0.75), (ORANGE_STAR, 0.8, 0.2), (RED_CIRCLE, 0.2, 0.25)]
    assert scene(*objects).captions(6) == (
        "a small red circle and a small orange star above a large blue heart.",
        "a small red circle and a small orange star at the top and a large blue heart at the bottom.",
        "a large blue heart below a small red circle and a small orange star.",
        "a small red circle, a small orange star and a large blue heart on a grey background.",
        "there is a small red circle and a small orange star above a large blue heart.",
        "three shapes: a small red circle, a small orange star and a large blue heart.",
    )


def test_one_left_of_two() -> None:
    objects = [(BIG_HEART, 0.25, 0.5), (ORANGE_STAR, 0.8, 0.8), (RED_CIRCLE, 0.75, 0.2)]
    assert scene(*objects).captions(1) == (
        "a large blue heart left of a small red circle and a small orange star.",
    )


@pytest.mark.parametrize(("x", "side"), [(0.2, "on the left"), (0.5, "in the middle"), (0.8, "on the right")])
def test_one_alone(x: float, side: str) -> None:
    assert scene((ORANGE_STAR, x, 0.3)).captions(6) == (
        f"an orange star {side}.",
        "an orange star on a grey background.",
        f"there is an orange star {side}.",
        "only an orange star.",
        "a picture of an orange star and nothing else.",
        "one shape: an orange star.",
    )


def test_fewer_captions_are_the_first_of_more() -> None:
    for index in range(50):
        captions = make_scene(0, index).captions(6)
        assert len(set(captions)) == 6
        assert make_scene(0, index).captions() == captions[:5]
        assert all(re.fullmatch(r"[a-z ,:]+\.", caption) for caption in captions)


RELATION = re.compile(r"^(.*) (left of|right of|above|below) (.*)\.$")
NOUN = re.compile(r"an? (?:(small|large) )?(\w+) (\w+)")
HOLDS = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


def find(scene: Scene, phrase: str) -> list[SceneObject]:
    """The objects that a phrase names; each noun must fit exactly one."""
    found = []
    for size, colour, shape in NOUN.findall(phrase):
        fitting = [
            item
            for item in scene.objects
            if (item.colour, item.shape) == (colour, shape) and size in ("", item.size)
        ]
        assert len(fitting) == 1, phrase
        found += fitting
    return found


def test_stated_relations_hold_and_name_every_object() -> None:
    checked = set()
    for index in range(1000):
        made = make_scene(1, index)
        for caption in made.captions(6):
            if match := RELATION.match(caption):
                first, relation, second = find(made, match[1]), match[2], find(made, match[3])
                assert len(first) + len(second) == len(made.objects)
                assert all(HOLDS[relation](a, b) for a in first for b in second), caption
                checked.add((relation, len(first), len(second)))
    assert checked == {(relation, *sizes) for relation in HOLDS for sizes in ((1, 1), (1, 2), (2, 1))}


@pytest.mark.parametrize("n", [0, 7])
def test_the_number_of_wordings_is_limited(n: int) -> None:
    with pytest.raises(ValueError, match=f"n must be from 1 to 6, got {n}"):
        make_scene(0, 0).captions(n)
