"""An endless series of synthetic scenes with captions, for training and tests without a download."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..utils.errors import UserError
from .arguments import SPLITS
from .columns import CaptionedImage, CaptionedImages
from .scene_captions import describe_scene

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 48),
    "orange": (250, 140, 30),
    "yellow": (252, 206, 40),
    "green": (52, 168, 83),
    "blue": (45, 105, 225),
    "purple": (135, 65, 190),
    "pink": (246, 125, 180),
    "brown": (130, 82, 48),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (252, 252, 250),
    "grey": (203, 207, 213),
    "black": (28, 30, 36),
}
RADII = {"small": 0.12, "large": 0.2}

_MARGIN = 0.03  # between an object and the frame, in frame widths
_INNER_EDGE = 0.29  # largest coordinate of centres in the left or upper group; the other group mirrors it
_IMAGE_SIZE = 64  # side length in pixels
_SUPERSAMPLING = 4  # scenes are drawn this much larger and downsampled, because Pillow does not anti-alias

_Point = tuple[float, float]


def _ring(num_points: int, *radii: float) -> list[_Point]:
    """Return points around a centre, clockwise from the top, with alternating radii."""
    angles = [2 * math.pi * i / num_points - math.pi / 2 for i in range(num_points)]
    lengths = [radii[i % len(radii)] for i in range(num_points)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(lengths, angles, strict=True)]


_HEART_TERMS = ((2, 5), (3, 2), (4, 1))


def _heart(num_points: int = 40) -> list[_Point]:
    """Return points of the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    turns = [2 * math.pi * i / num_points for i in range(num_points)]
    heights = [13 * math.cos(t) - sum(c * math.cos(k * t) for k, c in _HEART_TERMS) for t in turns]
    return [(math.sin(t) ** 3, -(y + 2.5) / 16) for t, y in zip(turns, heights, strict=True)]


# Outlines within [-1, 1] x [-1, 1], y downwards, scaled so that all shapes look equally large.
_OUTLINES: dict[str, list[_Point]] = {
    "circle": _ring(48, 0.97),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -0.92), (1, 0.82), (-1, 0.82)],
    "star": _ring(10, 1, 0.45),
    "cross": [
        *[(-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)],
        *[(0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)],
    ],
    "heart": _heart(),
}
SHAPES = tuple(_OUTLINES)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A shape of one colour."""

    shape: str  # one of `SHAPES`
    colour: str  # a key of `COLOURS`
    size: str  # a key of `RADII`, which has half the side of the bounding box in frame widths
    x: float  # of the centre, in frame widths from the left
    y: float  # of the centre, in frame heights from the top


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects that neither touch each other nor leave the frame."""

    objects: tuple[SceneObject, ...]  # no two with the same shape, colour and size
    background: str  # a key of `BACKGROUNDS`

    def load(self) -> Image.Image:
        """Draw the scene: 64 x 64 pixels of mode "RGB". The result is deterministic."""
        side = _IMAGE_SIZE * _SUPERSAMPLING
        image = Image.new("RGB", (side, side), BACKGROUNDS[self.background])
        draw = ImageDraw.Draw(image)
        for item in self.objects:
            radius = RADII[item.size]
            points = [
                ((item.x + radius * u) * side, (item.y + radius * v) * side) for u, v in _OUTLINES[item.shape]
            ]
            draw.polygon(points, fill=COLOURS[item.colour])
        return image.reduce(_SUPERSAMPLING)

    def to_png(self) -> bytes:
        """Draw the scene, as a PNG file."""
        file = io.BytesIO()
        self.load().save(file, format="PNG")
        return file.getvalue()

    def captions(self, n: int = 5) -> tuple[str, ...]:
        """Describe the scene in n different sentences; see `describe_scene`."""
        return describe_scene(self, n)


def make_scene(seed: int, index: int) -> Scene:
    """Generate the scene at position `index` of an endless series.

    A pure function of the seed and the index. 70% of the scenes have two objects, the others one or three.

    Args:
        seed: The seed of the series; 0 or more.
        index: The position in the series; 0 or more.
    """
    rng = np.random.default_rng([seed, index])
    num_objects = int(rng.choice([1, 2, 3], p=[0.15, 0.7, 0.15]))
    num_kinds = len(SHAPES) * len(COLOURS) * len(RADII)
    kinds = []
    for number in rng.choice(num_kinds, size=num_objects, replace=False).tolist():
        number, size = divmod(number, len(RADII))
        shape, colour = divmod(number, len(COLOURS))
        kinds.append((SHAPES[shape], list(COLOURS)[colour], list(RADII)[size]))
    places = _place([RADII[size] for _, _, size in kinds], rng)
    objects = (SceneObject(*kind, *place) for kind, place in zip(kinds, places, strict=True))
    return Scene(tuple(objects), list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])


def read_scenes(split: str, num_images: int, seed: int = 0) -> CaptionedImages:
    """Draw a dataset of scenes with five captions each.

    Args:
        split: "train", "val", "test" or "all". The splits alternate in the series, so no scene is in two.
        num_images: The number of scenes; a larger number does not change the first ones.
        seed: The seed of the series.

    Raises:
        UserError: There is no such split.
    """
    if split not in (*SPLITS, "all"):
        raise UserError(f"the scenes have no split {split!r}: give one of {', '.join(SPLITS)}")
    first, step = (0, 1) if split == "all" else (SPLITS.index(split), len(SPLITS))
    indices = range(first, first + num_images * step, step)
    scenes = ((f"scene-{index:06d}", make_scene(seed, index)) for index in indices)
    return CaptionedImages.from_images(
        CaptionedImage(name, scene.captions(), scene.to_png()) for name, scene in scenes
    )


def _place(radii: Sequence[float], rng: np.random.Generator) -> list[_Point]:
    """Choose centres that place one or two objects clearly to one side of the last object.

    The two groups are at least 1 - 2 * 0.29 = 0.42 apart along one axis. That is more than two large radii,
    so boxes never touch, and more than any gap along the other axis, so the relation of the groups is clear.
    """

    def near(radius: float) -> float:
        return rng.uniform(radius + _MARGIN, _INNER_EDGE)

    if len(radii) == 1:
        room = radii[0] + _MARGIN
        return [(float(rng.choice([0.25, 0.5, 0.75])), rng.uniform(room, 1 - room))]
    *group, alone = radii
    if len(group) == 1:
        room = max(radii) + _MARGIN
        across = rng.uniform(room, 1 - room)
        shifted = np.clip(across + rng.uniform(-0.15, 0.15), room, 1 - room)
        places = [(near(group[0]), across), (1 - near(alone), float(shifted))]
    else:
        centre = rng.uniform(0.46, 0.54)
        places = [(near(group[0]), near(group[0])), (near(group[1]), 1 - near(group[1]))]
        places.append((1 - near(alone), centre))
    mirrored, vertical = rng.integers(2, size=2).tolist()
    if mirrored:
        places = [(1 - along, across) for along, across in places]
    return [(across, along) if vertical else (along, across) for along, across in places]
