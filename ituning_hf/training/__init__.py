"""Training of the adapters, on Accelerate."""

from .arguments import TrainArguments
from .cli import train
from .errors import NonFiniteLossError, RunStopped, TooManyUnreadableError, TrainingError
from .loop import CaptionTrainer
from .setup import TrainingData
from .small_backbones import make_small_backbones
from .state import TrainState

__all__ = [
    "CaptionTrainer",
    "NonFiniteLossError",
    "RunStopped",
    "TooManyUnreadableError",
    "TrainArguments",
    "TrainState",
    "TrainingData",
    "TrainingError",
    "make_small_backbones",
    "train",
]
