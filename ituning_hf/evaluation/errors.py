"""What ends an evaluation that had begun; what was wrong before is a ValueError or an OSError."""

from ..utils.errors import WorkError


class EvaluationError(WorkError):
    """An evaluation cannot go on; what was captioned so far is kept."""
