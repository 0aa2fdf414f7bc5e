"""The axes along which the cost of a training step grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .peers import CROSS_ATTENTION
from .sizes import SIZES
from .training_ways import FLOOR, PICTURES, STORED, StepSettings

GROWING_WAYS = (FLOOR, STORED, PICTURES, CROSS_ATTENTION)

# A picture's side and a patch's, by the tokens that makes, the class token included.
_PICTURES = {50: (224, 32), 101: (160, 16), 197: (224, 16), 325: (288, 16), 577: (384, 16)}


@dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        label: As a plot says it.
        values: Those measured where none are asked for.
        change: Puts a value into a step's settings.
        allowed: All values there are, where not every number is one.
        on_cpu: Those measured on a CPU where none are asked for, in place of `values`.
    """

    label: str
    values: tuple[Any, ...]
    change: Callable[[StepSettings, Any], StepSettings]
    allowed: tuple[Any, ...] | None = None
    on_cpu: tuple[Any, ...] | None = None

    def parse(self, texts: list[str] | None, device: str) -> tuple[Any, ...]:
        """Read values of a command line, or take the default ones.

        Raises:
            ValueError: for a value that the axis does not have.
        """
        if texts is None:
            return self.on_cpu if self.on_cpu and device == "cpu" else self.values
        values = tuple(int(text) if text.isdecimal() else text for text in texts)
        kind = type(self.values[0])
        for value in values:
            if not isinstance(value, kind) or value == 0 or (self.allowed and value not in self.allowed):
                expected = f"some of {self.allowed}" if self.allowed else "positive integers"
                raise ValueError(f"--values has {value!r}, expected {expected}.")
        return values


def _with_picture(settings: StepSettings, tokens: int) -> StepSettings:
    image_size, patch_size = _PICTURES[tokens]
    return replace(settings, image_size=image_size, patch_size=patch_size)


AXES = {
    "batch": Axis(
        "pictures of a step",
        (1, 2, 4, 8, 16, 32, 64),
        lambda settings, value: replace(settings, num_images=value),
        on_cpu=(1, 2, 4, 8),
    ),
    "captions": Axis(
        "captions of a picture",
        (1, 2, 3, 5, 7, 10),
        lambda settings, value: replace(settings, captions_per_image=value),
    ),
    "length": Axis(
        "tokens of a caption",
        (4, 8, 12, 16, 24, 32),
        lambda settings, value: replace(settings, length=value, width=None),
    ),
    "image_tokens": Axis("tokens of a picture", tuple(_PICTURES), _with_picture, allowed=tuple(_PICTURES)),
    "decoder": Axis(
        "decoder",
        ("base", "medium", "large"),
        lambda settings, value: replace(settings, size=value),
        allowed=SIZES,
        on_cpu=("base", "medium"),
    ),
}
