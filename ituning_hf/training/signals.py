"""SIGTERM and Ctrl-C: the first ends a run with a checkpoint, a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..data.workers import STOP_SIGNALS
from .errors import RunStopped

# A terminal sends Ctrl-C to every process, and torchrun passes its own on to its workers: they receive one
# key press as two signals, a moment apart.
SAME_PRESS_SECONDS = 1.0
_NOTICE = "finishing the step and saving a checkpoint"


class StopRequest:
    """Whether a signal asked the run to end.

    Args:
        notice: What the command does before it ends, for the terminal.

    Attributes:
        signum: The first signal, None before it.
        deferred: False while there is nothing to save: a signal then raises `RunStopped` immediately. True
            only records it; the training loop checks between steps.
    """

    def __init__(self, notice: str = _NOTICE) -> None:
        self.notice = f"\nituning: {notice}; Ctrl-C once more ends at once\n".encode()
        self.signum: int | None = None
        self.deferred = False
        self._pid = os.getpid()
        self._since = 0.0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread.

        Raises:
            RunStopped: at the first signal, unless deferred.
            KeyboardInterrupt: at a second Ctrl-C.
        """
        if os.getpid() != self._pid:  # a forked data loader worker; its parent process ends it
            return
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
            if not self.deferred:
                raise RunStopped(signum, "before the first step")
            try:
                os.write(2, self.notice)  # not print, which the signal may have interrupted
            except OSError:  # the terminal was closed
                _discard_terminal_output()
        elif signum == signal.SIGINT and time.monotonic() - self._since > SAME_PRESS_SECONDS:
            raise KeyboardInterrupt


def _discard_terminal_output() -> None:
    """Connect the streams of a closed terminal to /dev/null, so that later output does not raise."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(null, stream)
    os.close(null)


@contextmanager
def stop_on_signals(notice: str = _NOTICE) -> Iterator[StopRequest]:
    """Turn SIGTERM and Ctrl-C into a request until the block ends; in the main thread only."""
    request = StopRequest(notice)
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
        yield request
        return
    # A signal that is already ignored stays ignored: nohup, or a script's background job.
    handled = [signum for signum in STOP_SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    previous = {signum: signal.signal(signum, request.handle) for signum in handled}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
