"""Scores of captions against what people wrote."""

from .metrics import compute_caption_metrics
from .tokenizer import tokenize_caption

__all__ = ["compute_caption_metrics", "tokenize_caption"]
