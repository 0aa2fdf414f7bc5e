"""What cost grows along: the axes that training and generation have in common, and how values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .arguments import writable_folder
from .growth import check_can_draw
from .sizes import SIZES

# A picture's side and a patch's, by the tokens that makes, the class token included.
_PICTURES = {50: (224, 32), 101: (160, 16), 197: (224, 16), 325: (288, 16), 577: (384, 16)}


@dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        label: As a plot says it.
        values: Those measured where none are asked for.
        change: Puts a value into settings.
        allowed: All values there are, where not every number is one.
        on_cpu: Those measured on a CPU where none are asked for, in place of `values`.
        most: The largest number there can be.
    """

    label: str
    values: tuple[Any, ...]
    change: Callable[[Any, Any], Any]
    allowed: tuple[Any, ...] | None = None
    on_cpu: tuple[Any, ...] | None = None
    most: int | None = None

    def parse(self, texts: list[str] | None, device: str) -> tuple[Any, ...]:
        """Read values of a command line, or take the default ones.

        Raises:
            ValueError: for a value that the axis does not have, or values that do not rise.
        """
        if texts is None:
            return self.on_cpu if self.on_cpu and device == "cpu" else self.values
        values = tuple(int(text) if text.isdecimal() else text for text in texts)
        for value in values:
            if not self._has(value):
                raise ValueError(f"--values has {value!r}, expected {self._expected()}.")
        places = [self.allowed.index(value) if self.allowed else value for value in values]
        if places != sorted({*places}):
            raise ValueError(f"--values are {' '.join(texts)}, expected them from small to large, each once.")
        return values

    def _has(self, value: Any) -> bool:
        if self.allowed:
            return value in self.allowed
        return isinstance(value, int) and 0 < value <= (self.most or value)

    def _expected(self) -> str:
        if self.allowed:
            return f"some of {', '.join(map(str, self.allowed))}"
        return f"whole numbers from 1{f' to {self.most}' if self.most else ''}"


def _with_picture(settings: Any, tokens: int) -> Any:
    image_size, patch_size = _PICTURES[tokens]
    return replace(settings, image_size=image_size, patch_size=patch_size)


BATCH = Axis(
    "pictures at once",
    (1, 2, 4, 8, 16, 32, 64),
    lambda settings, value: replace(settings, num_images=value),
    on_cpu=(1, 2, 4, 8),
)
IMAGE_TOKENS = Axis("tokens of a picture", tuple(_PICTURES), _with_picture, allowed=tuple(_PICTURES))
DECODER = Axis(
    "decoder",
    ("base", "medium", "large"),
    lambda settings, value: replace(settings, size=value),
    allowed=SIZES,
    on_cpu=("base", "medium"),
)


def add_growth_flags(parser: argparse.ArgumentParser, axes: Mapping[str, Axis]) -> None:
    """Add the flags of growth to a benchmark's."""
    add = parser.add_argument
    add("--growth", choices=[*axes], help="measure how cost grows along this, in place of the table")
    add("--values", nargs="+", help="of the growing axis, from small to large")
    add("--plots", type=writable_folder, help="a folder for the growth's plot, and for its numbers as JSON")


def read_growth(
    parser: argparse.ArgumentParser, options: argparse.Namespace, axes: Mapping[str, Axis]
) -> None:
    """Put what is measured into `options.values`; end with a message where that cannot be."""
    if options.growth is None:
        if options.values is not None or options.plots is not None:
            parser.error("--values and --plots are of --growth: say along what.")
        return
    try:
        options.values = axes[options.growth].parse(options.values, options.device)
        if options.plots is not None:
            check_can_draw()
    except (ValueError, ImportError) as error:
        parser.error(str(error))
