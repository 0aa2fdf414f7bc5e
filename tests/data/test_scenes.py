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

SCENES = [make_scene(5, index) for index in range(1000)]


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert make_scene(5, 7) == SCENES[7]
    assert make_scene(6, 7) != SCENES[7]
    assert len(set(SCENES)) == len(SCENES)
    assert make_scene(5, 10**9).objects  # there is no last one


def test_making_scenes_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    make_scene(0, 0).render()
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_series_does_not_change_between_versions() -> None:
    assert [make_scene(0, index).captions(1)[0] for index in range(4)] == SERIES_OF_SEED_0


SERIES_OF_SEED_0 = [
    "a large blue square above a small red star.",
    "a large pink square left of a small yellow star and a large pink heart.",
    "a purple square in the middle.",
    "a small orange cross and a large red heart above a large blue heart.",
]


def test_scenes_are_varied() -> None:
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert {number: round(count / 1000, 1) for number, count in counts.items()} == pytest.approx(
        {1: 0.15, 2: 0.7, 3: 0.15}, abs=0.06
    )
    objects = [item for scene in SCENES for item in scene.objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.size for item in objects} == set(RADII)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)


def test_objects_lie_apart_inside_the_frame_and_are_not_alike() -> None:
    for scene in SCENES:
        for item in scene.objects:
            assert RADII[item.size] < item.x < 1 - RADII[item.size]
            assert RADII[item.size] < item.y < 1 - RADII[item.size]
        for a, b in combinations(scene.objects, 2):
            reach = RADII[a.size] + RADII[b.size]
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > reach
            assert (a.shape, a.colour, a.size) != (b.shape, b.colour, b.size)


def test_objects_lie_clearly_apart_along_one_axis_only() -> None:
    for scene in SCENES:
        if len(scene.objects) > 1:
            columns, rows = (sorted(getattr(item, axis) for item in scene.objects) for axis in "xy")
            gaps = [max(b - a for a, b in pairwise(places)) for places in (columns, rows)]
            assert min(gaps) < 0.4
            assert max(gaps) > 0.42


@pytest.mark.parametrize("image_size", [30, 64, 97])
def test_renders_at_any_size(image_size: int) -> None:
    image = SCENES[0].render(image_size)
    assert (image.mode, image.size) == ("RGB", (image_size, image_size))


def test_draws_each_object_in_its_box_and_nothing_elsewhere() -> None:
    centres = (np.arange(64) + 0.5) / 64
    for scene in SCENES[:200]:
        pixels = np.asarray(scene.render(64)).astype(int)
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
        masks[shape] = np.asarray(scene.render(200))[..., 0] > 120
        rows, columns = masks[shape].any(axis=1).sum(), masks[shape].any(axis=0).sum()
        box = 2 * RADII[size] * 200
        assert 0.8 * box < min(rows, columns)
        assert max(rows, columns) <= box + 1
    for a, b in combinations(SHAPES, 2):
        assert (masks[a] != masks[b]).sum() > 0.1 * masks[a].sum()


def test_edges_are_smooth() -> None:
    scene = Scene((SceneObject("circle", "red", "large", 0.5, 0.5),), "white")
    assert len(scene.render(64).getcolors()) > 10


def test_reads_scenes_as_records() -> None:
    records = read_scenes("val", 20, seed=5)
    assert [record.source for record in records] == [make_scene(5, 3 * i + 1) for i in range(20)]
    assert records[2].captions == make_scene(5, 7).captions(5)
    assert records[2].name == "scene-000007"


def test_splits_share_no_scene_and_larger_ones_begin_with_smaller_ones() -> None:
    splits = [read_scenes(split, 50, seed=1) for split in ("train", "val", "test")]
    assert len({record.source for records in splits for record in records}) == 150
    assert len({record.name for records in splits for record in records}) == 150
    assert read_scenes("train", 10, seed=1) == splits[0][:10]
    assert read_scenes("train", 50, seed=2) != splits[0]


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no split 'dev'; choose from \('train', 'val', 'test'\)"):
        read_scenes("dev", 5)
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        read_scenes("train", 0)


def test_what_a_scene_is_drawn_from_tells_it_from_others() -> None:
    scenes = [make_scene(seed, index) for seed in (0, 1) for index in range(50)]
    assert len({scene.read() for scene in scenes}) == 100
    assert make_scene(1, 7).read() == make_scene(1, 7).read()
    assert all(scene.num_bytes == len(scene.read()) for scene in scenes)
