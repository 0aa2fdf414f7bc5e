"""Captioning benchmarks: a split is captioned and scored, and what came of it is reported."""

from .arguments import EvaluateArguments, parse_arguments
from .errors import EvaluationError
from .report import Evaluation
from .run import evaluate_captioner

__all__ = ["EvaluateArguments", "Evaluation", "EvaluationError", "evaluate_captioner", "parse_arguments"]
