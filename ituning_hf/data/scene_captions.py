"""A small grammar for the captions of synthetic scenes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scenes import Scene, SceneObject

_NUMBER_WORDS = {2: "two", 3: "three"}

# For each axis that separates two groups of objects: the relation of the first group to the second, the
# reverse relation, and the position of each group.
_RELATIONS = {
    "x": ("left of", "right of", "on the left", "on the right"),
    "y": ("above", "below", "at the top", "at the bottom"),
}
SIDES = (*_RELATIONS["x"][2:], *_RELATIONS["y"][2:], "in the middle")


def describe_scene(scene: Scene, n: int) -> tuple[str, ...]:
    """Describe a scene in n different sentences.

    Each sentence mentions every object with its colour and shape, and its size if the scene has both sizes.
    The left or upper object comes first, except in the sentence with the reverse relation.

    Args:
        scene: The scene.
        n: The number of sentences, from 1 to 6; a larger number adds sentences at the end.
    """
    one_size = len({item.size for item in scene.objects}) == 1
    if len(scene.objects) == 1:
        sentences = _describe_one(scene.objects[0], scene.background)
    else:
        sentences = _describe_groups(scene.objects, scene.background, with_size=not one_size)
    return tuple(f"{sentence}." for sentence in sentences[:n])


def place_objects(scene: Scene) -> list[tuple[SceneObject, str]]:
    """Return each object with its position in the scene, one of `SIDES`."""
    if len(scene.objects) == 1:
        return [(scene.objects[0], _side_of_one(scene.objects[0]))]
    axis, groups = _split_at_widest_gap(scene.objects)
    return [(item, side) for group, side in zip(groups, _RELATIONS[axis][2:], strict=True) for item in group]


def _side_of_one(item: SceneObject) -> str:
    return "on the left" if item.x < 0.4 else "on the right" if item.x > 0.6 else "in the middle"


def _describe_one(item: SceneObject, background: str) -> list[str]:
    phrase, side = noun_phrase(item, with_size=False), _side_of_one(item)
    return [
        f"{phrase} {side}",
        f"{phrase} on a {background} background",
        f"there is {phrase} {side}",
        f"only {phrase}",
        f"a picture of {phrase} and nothing else",
        f"one shape: {phrase}",
    ]


def _describe_groups(objects: Sequence[SceneObject], background: str, with_size: bool) -> list[str]:
    axis, groups = _split_at_widest_gap(objects)
    before, after, first_side, second_side = _RELATIONS[axis]
    phrases = [[noun_phrase(item, with_size) for item in group] for group in groups]
    first, second = map(_enumerate, phrases)
    everything = _enumerate(phrases[0] + phrases[1])
    return [
        f"{first} {before} {second}",
        f"{first} {first_side} and {second} {second_side}",
        f"{second} {after} {first}",
        f"{everything} on a {background} background",
        f"there is {first} {before} {second}",
        f"{_NUMBER_WORDS[len(objects)]} shapes: {everything}",
    ]


def _split_at_widest_gap(
    objects: Sequence[SceneObject],
) -> tuple[str, tuple[list[SceneObject], list[SceneObject]]]:
    """Find the axis with the widest gap between objects, and the two groups that it separates.

    Returns:
        "x" or "y", and the objects before and after the gap, each ordered along the other axis.
    """
    gaps = []
    for axis in ("x", "y"):
        ordered = sorted(getattr(item, axis) for item in objects)
        gaps += [(high - low, axis, low) for low, high in pairwise(ordered)]
    _, axis, edge = max(gaps)
    across = "y" if axis == "x" else "x"
    ordered_objects = sorted(objects, key=lambda item: getattr(item, across))
    first = [item for item in ordered_objects if getattr(item, axis) <= edge]
    second = [item for item in ordered_objects if getattr(item, axis) > edge]
    return axis, (first, second)


def noun_phrase(item: SceneObject, with_size: bool) -> str:
    """Return the noun phrase of an object: "an orange star", "a large orange star"."""
    words = ([item.size] if with_size else []) + [item.colour, item.shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _enumerate(phrases: Sequence[str]) -> str:
    """Join phrases: "a", "a and b", "a, b and c"."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last
