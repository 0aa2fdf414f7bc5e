"""Training of the adapters, on Accelerate."""

from .arguments import TrainArguments, parse_arguments
from .cli import train
from .loop import CaptionTrainer, NonFiniteLossError, TooManyUnreadableError, TrainState
from .small_backbones import make_small_backbones

__all__ = [
    "CaptionTrainer",
    "NonFiniteLossError",
    "TooManyUnreadableError",
    "TrainArguments",
    "TrainState",
    "make_small_backbones",
    "parse_arguments",
    "train",
]
