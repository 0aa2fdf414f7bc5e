"""Training of the adapters, on Accelerate."""

from .arguments import TrainArguments
from .checkpoints import TrainState
from .data import TrainingData
from .errors import NonFiniteLossError, RunStopped, TooManyUnreadableError, TrainingError
from .loop import CaptionTrainer
from .run import train

__all__ = [
    "CaptionTrainer",
    "NonFiniteLossError",
    "RunStopped",
    "TooManyUnreadableError",
    "TrainArguments",
    "TrainState",
    "TrainingData",
    "TrainingError",
    "train",
]
