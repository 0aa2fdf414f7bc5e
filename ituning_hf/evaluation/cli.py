"""`ituning evaluate`: an evaluation from the command line to the report."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.distributed import OtherProcessError, command_process
from .arguments import parse_arguments
from .run import evaluate_captioner


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate by command line.

    The exit codes, which are those of `ituning evaluate`:

    - 0: the report is written, or was complete.
    - 1: it failed on its way, with an `EvaluationError`: too many images cannot be read (or any, with
      `--expected_images`), a scorer failed.
    - 2: it could not begin: a mistake in the settings, data or a captioner that cannot be used, a folder that
      holds another evaluation.
    - 130: it was stopped by Ctrl-C.

    Each comes with one line on standard error that says what happened and what to do. Whatever ended it, the
    same command goes on with what is left to caption.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit code, where the message was printed or is another process's to print. Other errors are
        raised.
    """
    args = parse_arguments(argv)
    try:
        with command_process():
            evaluate_captioner(args)
    except OtherProcessError as error:
        return error.exit_code
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("interrupted: the same command goes on with what is left") from stopped
    return 0
