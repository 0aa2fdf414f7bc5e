"""Errors that end a run after it began; input that cannot be used is a UserError or an OSError."""

import signal

from ..utils.errors import WorkError


class TrainingError(WorkError):
    """A run cannot continue; its checkpoints are complete."""


class NonFiniteLossError(TrainingError):
    """A loss, a gradient or a weight became NaN or infinite."""


class RunStopped(KeyboardInterrupt):
    """A signal ended the run. A KeyboardInterrupt, which no `except Exception` of a library catches.

    Args:
        signum: The signal.
        when: The progress of the run, such as "after step 7".
    """

    def __init__(self, signum: int, when: str) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} {when}")
        self.exit_code = 128 + signum  # the shell's convention
