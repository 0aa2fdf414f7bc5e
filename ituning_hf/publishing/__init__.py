"""A saved captioner to the Hub: what may go there, and its way."""

from .push import PushResult, push_captioner
from .review import Review, review_captioner

__all__ = ["PushResult", "Review", "push_captioner", "review_captioner"]
