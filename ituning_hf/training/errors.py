"""What ends a run that had begun; what was wrong before is a ValueError or an OSError."""

import signal

from ..utils.errors import WorkError


class TrainingError(WorkError):
    """A run cannot go on; its checkpoints are whole."""


class NonFiniteLossError(TrainingError):
    """The loss or a gradient became NaN or infinite."""


class TooManyUnreadableError(TrainingError):
    """More of the images cannot be read than the run allows."""


class RunStopped(KeyboardInterrupt):
    """A signal ended the run; like any interruption, no `except Exception` of a library may swallow it.

    Args:
        signum: The signal.
        when: Where the run stands, such as "after step 7".
    """

    def __init__(self, signum: int, when: str) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} {when}")
        self.exit_code = 128 + signum  # as the shell says it
