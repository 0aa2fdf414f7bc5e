"""How right a caption of a drawn scene is, read from the sentence itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.scenes import COLOURS, SHAPES

_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


@dataclass(frozen=True)
class Scores:
    """Shares of captions, each from 0 to 1.

    Args:
        objects: Names each object's colour and shape, and no others; size, place and order may be wrong.
        everything: Is the true sentence to the last word.
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
    """Compare captions with what is true, each with its own.

    Args:
        captions: What was said; at least one.
        truths: The scenes' own sentences.
    """
    pairs = list(zip(captions, truths, strict=True))
    objects = sum(named_objects(caption) == named_objects(truth) for caption, truth in pairs)
    everything = sum(caption == truth for caption, truth in pairs)
    return Scores(objects / len(pairs), everything / len(pairs))
