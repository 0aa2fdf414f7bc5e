"""What ends work that had begun; what was wrong before is a ValueError or an OSError."""


class WorkError(RuntimeError):
    """Long work cannot go on. What it did is kept, and the message is for whoever started it."""
