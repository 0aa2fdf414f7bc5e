"""The demo's data and scoring: synthetic scenes with two objects and one sentence each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.columns import CaptionedImage, CaptionedImages
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

    train: CaptionedImages
    validation: CaptionedImages
    held_out: CaptionedImages
    unseen: CaptionedImages


def compose_scenes(seed: int, num_train: int, num_validation: int, num_test: int) -> DemoScenes:
    """Generate the demo's scenes, a pure function of the arguments.

    Args:
        seed: The seed of the series of scenes; 0 or more.
        num_train: Number of training scenes.
        num_validation: Number of validation scenes.
        num_test: Number of test scenes in each of `held_out` and `unseen`.
    """
    indices = itertools.count()

    def scenes(unseen: bool) -> Iterator[CaptionedImage]:
        for index in indices:
            scene = make_scene(seed, index)
            if len(scene.objects) == 2 and has_unseen_pair(scene) == unseen:
                # One wording each: the left or upper object comes first. Both orders would double the task.
                yield CaptionedImage(f"scene-{index:06d}", scene.captions(1), scene.to_png())

    def take(count: int, unseen: bool = False) -> CaptionedImages:
        return CaptionedImages.from_images(itertools.islice(scenes(unseen), count))

    return DemoScenes(take(num_train), take(num_validation), take(num_test), take(num_test, unseen=True))


def has_unseen_pair(scene: Scene) -> bool:
    """Return whether a scene shows one of `UNSEEN_PAIRS`."""
    return any((item.colour, item.shape) in UNSEEN_PAIRS for item in scene.objects)


@dataclass(frozen=True)
class CaptionedScene:
    """A scene with a generated caption.

    Args:
        name: The scene's name, also its image's file name.
        truth: The scene's own sentence.
        caption: The generated caption.
    """

    name: str
    truth: str
    caption: str

    @property
    def verdict(self) -> str:
        """The correctness of the caption: "right", "objects right" or "wrong".

        "objects right" means that it names each object's colour and shape and no other object; sizes,
        positions and order may be wrong.
        """
        if self.caption == self.truth:
            return "right"
        same = sorted(_OBJECT.findall(self.caption)) == sorted(_OBJECT.findall(self.truth))
        return "objects right" if same else "wrong"


@dataclass(frozen=True)
class Scores:
    """Shares of captions with right objects, and with everything right; each from 0 to 1."""

    objects: float
    everything: float


def score(scenes: Sequence[CaptionedScene]) -> Scores:
    """Return the scores of at least one captioned scene."""
    verdicts = [scene.verdict for scene in scenes]
    objects = sum(verdict != "wrong" for verdict in verdicts)
    return Scores(objects / len(verdicts), verdicts.count("right") / len(verdicts))
