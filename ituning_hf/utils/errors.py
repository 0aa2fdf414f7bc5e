"""The errors that a command shows as one line, without a traceback."""


class UserError(ValueError):
    """Input that cannot be used: a setting, a file, a dataset. The message says what to do. Exit code 2."""


class WorkError(RuntimeError):
    """Long work that had begun and cannot continue. Finished work is kept. Exit code 1."""


class OtherProcessError(RuntimeError):
    """Another process failed and reports the error; this one only ends.

    Args:
        text: The other process's message.
        exit_code: The other process's exit code, which this one returns too.
        on_other_host: Whether this process must report the error too: it is the first process of its host,
            and the other process runs on another host, whose output may not be seen here.
    """

    def __init__(self, text: str, exit_code: int, on_other_host: bool = False) -> None:
        super().__init__(text)
        self.exit_code, self.on_other_host = exit_code, on_other_host


def exit_code_of(error: BaseException) -> int | None:
    """Return a command's exit code after an error that its message explains; None after any other: a bug."""
    if isinstance(error, WorkError):
        return 1
    # The captioner's error class is recognized by name: importing it would import Transformers.
    names = [base.__name__ for base in type(error).__mro__]
    if isinstance(error, (OSError, UserError)) or "CaptionerError" in names:
        return 2
    return 2 if type(error) is ImportError else None  # an extra to install; a missing module is a subclass
