"""What ends an evaluation that had begun; what was wrong before is a ValueError or an OSError."""


class EvaluationError(RuntimeError):
    """An evaluation cannot go on; what was captioned so far is kept."""
