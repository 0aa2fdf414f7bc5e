"""Scores of captions against what people wrote."""

from .metrics import compute_caption_metrics, score_captions
from .modules import metric_path
from .scores import CaptionScores
from .tokenizer import tokenize_caption, tokenize_captions

__all__ = [
    "CaptionScores",
    "compute_caption_metrics",
    "metric_path",
    "score_captions",
    "tokenize_caption",
    "tokenize_captions",
]
