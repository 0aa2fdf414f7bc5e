"""Former names of `hub.records`, until `training` and `evaluation` have moved."""

from .records import (
    TRAINING_FILE,
    TrainingRecord,
    ValidationRecord,
    read_training_record,
    write_training_record,
)

DRAWN_SCENES = "scenes that ituning_hf draws"

__all__ = [
    "TRAINING_FILE",
    "TrainingRecord",
    "ValidationRecord",
    "read_training_record",
    "write_training_record",
]
