"""What ends a run that had begun; what was wrong before is a ValueError or an OSError."""


class TrainingError(RuntimeError):
    """A run cannot go on; its checkpoints are whole."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class TooManyUnreadableError(TrainingError):
    """More of the images cannot be read than the run allows."""
