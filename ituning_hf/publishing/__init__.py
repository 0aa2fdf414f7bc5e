"""A saved captioner to the Hub: what may go there, and its way."""

from .contents import Review
from .push import PushResult, check_repo_id, push_captioner
from .review import review_captioner

__all__ = ["PushResult", "Review", "check_repo_id", "push_captioner", "review_captioner"]
