"""Scores of captions against what people wrote."""

from .metrics import compute_caption_metrics, score_captions
from .scores import CaptionScores
from .tokenizer import tokenize_caption

__all__ = ["CaptionScores", "compute_caption_metrics", "score_captions", "tokenize_caption"]
