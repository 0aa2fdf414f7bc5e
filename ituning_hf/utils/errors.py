"""The errors that a command shows as one line, without a traceback."""


class UserError(ValueError):
    """Input that cannot be used: a setting, a file, a data set. The message says what to do. Exit code 2."""


class WorkError(RuntimeError):
    """Long work that had begun and cannot continue. Finished work is kept. Exit code 1."""
