"""The worker processes of a data loader."""

from __future__ import annotations

import os
import signal

# A closed terminal sends SIGHUP; Windows does not have it.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


def usable_workers(wanted: int) -> int:
    """Return how many workers to start: at most one for each core that this process may use.

    PyTorch warns about more, and more are not faster. What they read does not depend on their number.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, nor on Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(wanted, cores)


def ignore_stop_signals(worker_id: int) -> None:
    """Keep a worker alive when a signal goes to the whole process group.

    Its parent process ends it, may need its images until then, and would report its death as an error.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
