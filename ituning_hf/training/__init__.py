"""Training of the adapters, on Accelerate."""

from typing import TYPE_CHECKING

from ..utils.imports import lazy_names

if TYPE_CHECKING:
    from .arguments import TrainArguments as TrainArguments
    from .data import TrainingData as TrainingData
    from .errors import RunStopped as RunStopped
    from .errors import TrainingError as TrainingError
    from .run import train as train

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "arguments": ["TrainArguments"],
        "data": ["TrainingData"],
        "errors": ["RunStopped", "TrainingError"],
        "run": ["train"],
    },
)
