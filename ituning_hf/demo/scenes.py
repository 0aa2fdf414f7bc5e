"""The demo's data, and how its captions are scored: drawn scenes with two objects and one sentence each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..data.records import CaptionedImage
from ..data.scenes import COLOURS, SHAPES, Scene, make_scene

# Eight of the 48 pairs of a colour and a shape are withheld from the adapters. Each colour is withheld once,
# so that the adapters meet every colour and every shape, but not these combinations.
UNSEEN_PAIRS = frozenset((colour, SHAPES[(2 * i + i // 3) % len(SHAPES)]) for i, colour in enumerate(COLOURS))

_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True)
class DemoScenes:
    """The demo's data; its parts share no scene.

    Args:
        train: Training scenes without any of `UNSEEN_PAIRS`.
        validation: Scenes for the validation loss, also without them.
        held_out: Test scenes, also without them.
        unseen: Test scenes that each show at least one of `UNSEEN_PAIRS`.
    """

    train: list[CaptionedImage]
    validation: list[CaptionedImage]
    held_out: list[CaptionedImage]
    unseen: list[CaptionedImage]


def compose_scenes(seed: int, num_train: int, num_validation: int, num_test: int) -> DemoScenes:
    """Compose the demo's scenes, a pure function of the arguments.

    Args:
        seed: Chooses the series of scenes; 0 or more.
        num_train: Number of training scenes.
        num_validation: Number of validation scenes.
        num_test: Number of test scenes in each of `held_out` and `unseen`.
    """
    indices = itertools.count()

    def take(count: int, is_wanted: Callable[[Scene], bool]) -> list[CaptionedImage]:
        scenes = ((index, make_scene(seed, index)) for index in indices)
        chosen = ((i, scene) for i, scene in scenes if len(scene.objects) == 2 and is_wanted(scene))
        # One wording each: the left or upper object comes first. Both orders would double the task.
        return [
            CaptionedImage(f"scene-{index:06d}", scene.captions(1), scene)
            for index, scene in itertools.islice(chosen, count)
        ]

    def has_known_pairs(scene: Scene) -> bool:
        return not has_unseen_pair(scene)

    return DemoScenes(
        take(num_train, has_known_pairs),
        take(num_validation, has_known_pairs),
        take(num_test, has_known_pairs),
        take(num_test, has_unseen_pair),
    )


def has_unseen_pair(scene: Scene) -> bool:
    """Return whether a scene shows one of `UNSEEN_PAIRS`."""
    return any((item.colour, item.shape) in UNSEEN_PAIRS for item in scene.objects)


@dataclass(frozen=True)
class Scores:
    """Shares of captions, each from 0 to 1.

    Args:
        objects: The caption names each object's colour and shape and no other object; sizes, positions and
            order may be wrong.
        everything: The caption equals the scene's own sentence.
    """

    objects: float
    everything: float


def named_objects(caption: str) -> list[tuple[str, str]]:
    """Return the (colour, shape) pairs that a caption names, sorted.

    Example:
    ```python
    >>> named_objects("a small red star above a large blue heart.")
    [('blue', 'heart'), ('red', 'star')]

    ```
    """
    return sorted(_OBJECT.findall(caption))


def score_captions(captions: Sequence[str], truths: Sequence[str]) -> Scores:
    """Compare each caption with the sentence of its scene.

    Args:
        captions: At least one caption.
        truths: The scenes' own sentences.
    """
    pairs = list(zip(captions, truths, strict=True))
    objects = sum(named_objects(caption) == named_objects(truth) for caption, truth in pairs)
    everything = sum(caption == truth for caption, truth in pairs)
    return Scores(objects / len(pairs), everything / len(pairs))
