"""Score captions against human captions."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .metrics import compute_caption_metrics as compute_caption_metrics
    from .modules import metric_path as metric_path

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "metrics": ["compute_caption_metrics"],
        "modules": ["metric_path"],
    },
)
