"""What the demo is trained on and asked: drawn scenes of two objects, one sentence each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ..data.records import CaptionedImage
from ..data.scenes import COLOURS, SHAPES, Scene, make_scene

# Of the 48 pairs of a colour and a shape, the adapter never sees these eight: each colour once, so that
# every colour and every shape is known to it, and only their meeting is new.
UNSEEN_PAIRS = frozenset((colour, SHAPES[(2 * i + i // 3) % len(SHAPES)]) for i, colour in enumerate(COLOURS))


@dataclass(frozen=True)
class DemoScenes:
    """The demo's data; no scene is in two of them.

    Args:
        train: What the adapter is trained on; none of `UNSEEN_PAIRS` in it.
        validation: For the validation loss; likewise.
        held_out: To be captioned; likewise.
        unseen: To be captioned; each has at least one of `UNSEEN_PAIRS`.
    """

    train: list[CaptionedImage]
    validation: list[CaptionedImage]
    held_out: list[CaptionedImage]
    unseen: list[CaptionedImage]


def compose_scenes(seed: int, num_train: int, num_validation: int, num_test: int) -> DemoScenes:
    """Compose the demo's scenes, a pure function of the arguments.

    Args:
        seed: Chooses the series of scenes; 0 or more.
        num_train: Scenes to train on.
        num_validation: Scenes for the validation loss.
        num_test: Scenes to be captioned, of known pairs and of unseen ones, so many of each.
    """
    indices = iter(range(_MORE_THAN_ENOUGH))

    def take(count: int, wanted: Callable[[Scene], bool]) -> list[CaptionedImage]:
        scenes = ((index, make_scene(seed, index)) for index in indices)
        chosen = ((index, scene) for index, scene in scenes if len(scene.objects) == 2 and wanted(scene))
        return [_to_record(index, scene) for index, scene in itertools.islice(chosen, count)]

    def known(scene: Scene) -> bool:
        return not has_unseen_pair(scene)

    return DemoScenes(
        take(num_train, known),
        take(num_validation, known),
        take(num_test, known),
        take(num_test, has_unseen_pair),
    )


_MORE_THAN_ENOUGH = 10**7


def has_unseen_pair(scene: Scene) -> bool:
    """Tell whether a scene shows one of `UNSEEN_PAIRS`."""
    return any((item.colour, item.shape) in UNSEEN_PAIRS for item in scene.objects)


def _to_record(index: int, scene: Scene) -> CaptionedImage:
    # One wording: the left or upper object first. Both orders would double what there is to learn.
    return CaptionedImage(name=f"scene-{index:06d}", captions=scene.captions(1), source=scene)
