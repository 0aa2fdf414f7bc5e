"""Saving and publishing of captioners, their model cards, and descriptions of them."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .card import add_evaluation as add_evaluation
    from .card import write_card as write_card
    from .inspection import describe as describe
    from .push import push_captioner as push_captioner
    from .saving import save_captioner as save_captioner

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "card": ["add_evaluation", "write_card"],
        "inspection": ["describe"],
        "push": ["push_captioner"],
        "saving": ["save_captioner"],
    },
)
