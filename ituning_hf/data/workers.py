"""The worker processes of a data loader."""

from __future__ import annotations

import os
import signal

# A closed terminal sends SIGHUP; Windows does not have it.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


def usable_workers(wanted: int) -> int:
    """Return the number of workers to start: at most one per core that this process may use.

    More are not faster, and PyTorch warns about them. Their number does not change the data.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, nor on Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(wanted, cores)


def ignore_stop_signals(worker_id: int) -> None:
    """Ignore stop signals in a worker, because they may be sent to the whole process group.

    The parent process still needs the worker's images, and would report its death as an error.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
