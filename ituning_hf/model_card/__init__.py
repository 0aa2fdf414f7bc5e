"""The page by which a stranger judges a captioner, rendered from what is known of it."""

from ..training_record import TrainingRecord, ValidationRecord, read_training_record, write_training_record
from .evaluation_results import EvaluationResult, read_evaluations, write_evaluations
from .writing import render_card, write_card

__all__ = [
    "EvaluationResult",
    "TrainingRecord",
    "ValidationRecord",
    "read_evaluations",
    "read_training_record",
    "render_card",
    "write_card",
    "write_evaluations",
    "write_training_record",
]
