import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from ituning_hf.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    Scene,
    SceneObject,
    make_scene,
    read_scenes,
)
from ituning_hf.utils.errors import UserError

SCENES = [make_scene(5, index) for index in range(600)]

# --- Composition


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert make_scene(5, 7) == SCENES[7]
    assert make_scene(6, 7) != SCENES[7]
    assert len(set(SCENES)) == len(SCENES)
    assert make_scene(5, 10**9).objects  # the series is endless
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_series_does_not_change_between_versions() -> None:
    assert [make_scene(0, index).captions(1)[0] for index in range(4)] == [
        "a large blue square above a small red star.",
        "a large pink square left of a small yellow star and a large pink heart.",
        "a purple square in the middle.",
        "a small orange cross and a large red heart above a large blue heart.",
    ]


def test_scenes_are_varied() -> None:
    counts = Counter(len(scene.objects) for scene in SCENES)
    shares = {number: count / len(SCENES) for number, count in counts.items()}
    assert shares == pytest.approx({1: 0.15, 2: 0.7, 3: 0.15}, abs=0.06)
    objects = [item for scene in SCENES for item in scene.objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.size for item in objects} == set(RADII)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)


def test_objects_are_inside_the_frame_separate_and_different() -> None:
    for scene in SCENES:
        for item in scene.objects:
            assert RADII[item.size] < item.x < 1 - RADII[item.size]
            assert RADII[item.size] < item.y < 1 - RADII[item.size]
        for a, b in combinations(scene.objects, 2):
            reach = RADII[a.size] + RADII[b.size]
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > reach
            assert (a.shape, a.colour, a.size) != (b.shape, b.colour, b.size)


def test_objects_are_clearly_separated_along_one_axis_only() -> None:
    for scene in SCENES:
        if len(scene.objects) > 1:
            columns, rows = (sorted(getattr(item, axis) for item in scene.objects) for axis in "xy")
            gaps = [max(b - a for a, b in pairwise(positions)) for positions in (columns, rows)]
            assert min(gaps) < 0.4
            assert max(gaps) > 0.42


# --- Drawing


def test_draws_each_object_in_its_box_and_nothing_elsewhere() -> None:
    centres = (np.arange(64) + 0.5) / 64
    for scene in SCENES[:100]:
        pixels = np.asarray(scene.load()).astype(int)
        outside = np.ones((64, 64), dtype=bool)
        for item in scene.objects:
            middle = pixels[int(item.y * 64), int(item.x * 64)]
            assert tuple(middle) == COLOURS[item.colour]
            reach = RADII[item.size] + 1 / 64
            outside &= ~np.logical_and.outer(abs(centres - item.y) < reach, abs(centres - item.x) < reach)
        assert outside.sum() > 64 * 64 / 4
        assert (pixels[outside] == BACKGROUNDS[scene.background]).all()


@pytest.mark.parametrize("size", RADII)
def test_shapes_differ_but_look_equally_large(size: str) -> None:
    masks = {}
    for shape in SHAPES:
        scene = Scene((SceneObject(shape, "red", size, 0.5, 0.5),), "black")
        masks[shape] = np.asarray(scene.load())[..., 0] > 120
        rows, columns = masks[shape].any(axis=1).sum(), masks[shape].any(axis=0).sum()
        box = 2 * RADII[size] * 64
        assert 0.8 * box < min(rows, columns)
        assert max(rows, columns) <= box + 1
    for a, b in combinations(SHAPES, 2):
        assert (masks[a] != masks[b]).sum() > 0.1 * masks[a].sum()


def test_edges_are_smooth() -> None:
    image = Scene((SceneObject("circle", "red", "large", 0.5, 0.5),), "white").load()
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert len(image.getcolors(64**2)) > 7


# --- As a dataset


def test_reads_scenes_as_records() -> None:
    records = read_scenes("val", 20, seed=5)
    assert [record.load() for record in records] == [make_scene(5, 3 * i + 1).load() for i in range(20)]
    assert records[2].captions == make_scene(5, 7).captions(5)
    assert records[2].name == "scene-000007"
    assert len({record.source for record in records}) == 20


def test_splits_share_no_scene_and_larger_ones_begin_with_smaller_ones() -> None:
    splits = [read_scenes(split, 50, seed=1) for split in ("train", "val", "test")]
    assert len({record.source for records in splits for record in records}) == 150
    assert len({record.name for records in splits for record in records}) == 150
    assert list(read_scenes("train", 10, seed=1)) == list(splits[0][:10])
    assert list(read_scenes("train", 50, seed=2)) != list(splits[0])


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"no split 'dev': give one of train, val, test"):
        read_scenes("dev", 5)


# --- Captions

RED_CIRCLE = ("circle", "red", "small")
ORANGE_STAR = ("star", "orange", "small")
BIG_HEART = ("heart", "blue", "large")


def scene(*objects: tuple[tuple[str, str, str], float, float]) -> Scene:
    return Scene(tuple(SceneObject(*kind, x, y) for kind, x, y in objects), "grey")


def test_captions_of_two_objects_side_by_side() -> None:
    # given from right to left: the order in the captions is that of the image
    assert scene((ORANGE_STAR, 0.8, 0.5), (RED_CIRCLE, 0.2, 0.6)).captions(6) == (
        "a red circle left of an orange star.",
        "a red circle on the left and an orange star on the right.",
        "an orange star right of a red circle.",
        "a red circle and an orange star on a grey background.",
        "there is a red circle left of an orange star.",
        "two shapes: a red circle and an orange star.",
    )


def test_captions_of_two_objects_above_one() -> None:
    objects = [(BIG_HEART, 0.5, 0.75), (ORANGE_STAR, 0.8, 0.2), (RED_CIRCLE, 0.2, 0.25)]
    assert scene(*objects).captions(6) == (
        "a small red circle and a small orange star above a large blue heart.",
        "a small red circle and a small orange star at the top and a large blue heart at the bottom.",
        "a large blue heart below a small red circle and a small orange star.",
        "a small red circle, a small orange star and a large blue heart on a grey background.",
        "there is a small red circle and a small orange star above a large blue heart.",
        "three shapes: a small red circle, a small orange star and a large blue heart.",
    )


@pytest.mark.parametrize(("x", "side"), [(0.2, "on the left"), (0.5, "in the middle"), (0.8, "on the right")])
def test_captions_of_one_object(x: float, side: str) -> None:
    assert scene((ORANGE_STAR, x, 0.3)).captions(6) == (
        f"an orange star {side}.",
        "an orange star on a grey background.",
        f"there is an orange star {side}.",
        "only an orange star.",
        "a picture of an orange star and nothing else.",
        "one shape: an orange star.",
    )


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
    for made in SCENES:
        captions = made.captions(6)
        assert len(set(captions)) == 6
        assert made.captions() == captions[:5]
        assert all(re.fullmatch(r"[a-z ,:]+\.", caption) for caption in captions)
        for caption in captions:
            if match := RELATION.match(caption):
                first, relation, second = find(made, match[1]), match[2], find(made, match[3])
                assert len(first) + len(second) == len(made.objects)
                assert all(HOLDS[relation](a, b) for a in first for b in second), caption
                checked.add((relation, len(first), len(second)))
    assert checked == {(relation, *sizes) for relation in HOLDS for sizes in ((1, 1), (1, 2), (2, 1))}
