"""`ituning demo`: I-Tuning on synthetic scenes, with the two bundled miniature backbones."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .story import run_demo as run_demo

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "story": ["run_demo"],
    },
)
