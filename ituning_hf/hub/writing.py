"""Former names of `hub.card`, until `evaluation` has moved."""

from .card import render_card, write_card

__all__ = ["render_card", "write_card"]
